"""cryoDRGN as a program beside: its training on some images, timed."""

import os
import pickle
import resource
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import torch


def cryodrgn_rate(
    program: str, data: Path, *, zdim: int, width: int, layers: int, batch: int, images: int
) -> tuple[float, float]:
    """Images per second of ``cryodrgn train_vae``, from runs of 1 and 3 passes; and peak GiB.

    On the first ``images`` of a folder with particles.mrcs and truth.star. What the program does
    before training is in both runs, and subtracted; the peak is that of the largest child so far.
    """
    alike = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    with tempfile.TemporaryDirectory() as name:
        folder, star = Path(name), str(data / "truth.star")
        for kind, out, more in (
            ("parse_pose_star", "poses.pkl", []),
            ("parse_ctf_star", "ctf.pkl", ["--ps", "0"]),  # no phase plate: else NaN
        ):
            call = [program, kind, star, "-o", str(folder / out), *more]
            subprocess.run(call, check=True, capture_output=True, cwd=data)
        with open(folder / "some.pkl", "wb") as file:
            pickle.dump(np.arange(images), file)
        seconds = []
        for passes in (1, 3):
            size = [f"--{part}-{kind}" for part in ("enc", "dec") for kind in ("dim", "layers")]
            values = [str(width), str(layers)] * 2
            call = [program, "train_vae", str(data / "particles.mrcs"), "-o", str(folder / "out")]
            call += ["--poses", str(folder / "poses.pkl"), "--ctf", str(folder / "ctf.pkl")]
            call += ["--zdim", str(zdim), "-n", str(passes), "-b", str(batch), "--no-analysis"]
            call += ["--ind", str(folder / "some.pkl")]
            call += [word for pair in zip(size, values, strict=True) for word in pair]
            began = time.perf_counter()
            subprocess.run(call, check=True, capture_output=True, env=alike)
            seconds.append(time.perf_counter() - began)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    return 2 * images / (seconds[1] - seconds[0]), peak
