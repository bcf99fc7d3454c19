"""cryoDRGN as a program beside: its training on some images, timed."""

import os
import pickle
import resource
import subprocess
import tempfile
from pathlib import Path

import mrcfile
import numpy as np
import torch


def cryodrgn_rate(
    program: str, data: Path, *, zdim: int, width: int, layers: int, batch: int, images: int
) -> tuple[float, float]:
    """Images per second of ``cryodrgn train_vae``, from runs of 1 and 3 passes; and peak GiB.

    On the first ``images`` of a folder with particles.mrcs and truth.star. What the program does
    before training is in both runs, and subtracted; the peak is that of the largest child so far.
    """
    size = {"zdim": zdim, "width": width, "layers": layers, "batch": batch}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(program, data, folder)
        with open(folder / "some.pkl", "wb") as file:
            pickle.dump(np.arange(images), file)
        some = ["--ind", str(folder / "some.pkl")]
        seconds = [train(program, data, folder, n, some, **size) for n in (1, 3)]
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    return 2 * images / (seconds[1] - seconds[0]), peak


def prepare(program: str, data: Path, folder: Path) -> None:
    """Poses and CTFs of truth.star as the program has them."""
    star = str(data / "truth.star")
    for kind, out, more in (
        ("parse_pose_star", "poses.pkl", []),
        ("parse_ctf_star", "ctf.pkl", ["--ps", "0"]),  # no phase plate: else NaN
    ):
        call = [program, kind, star, "-o", str(folder / out), *more]
        subprocess.run(call, check=True, capture_output=True, cwd=data)


def train(
    program: str,
    data: Path,
    folder: Path,
    passes: int,
    more: list[str],
    *,
    zdim: int,
    width: int,
    layers: int,
    batch: int,
) -> float:
    """Train into ``folder / out``; seconds of the whole program, of the processor's time."""
    alike = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    size = [f"--{part}-{kind}" for part in ("enc", "dec") for kind in ("dim", "layers")]
    values = [str(width), str(layers)] * 2
    call = [program, "train_vae", str(data / "particles.mrcs"), "-o", str(folder / "out")]
    call += ["--poses", str(folder / "poses.pkl"), "--ctf", str(folder / "ctf.pkl")]
    call += ["--zdim", str(zdim), "-n", str(passes), "-b", str(batch), "--no-analysis", *more]
    call += [word for pair in zip(size, values, strict=True) for word in pair]
    began = _processor()
    subprocess.run(call, check=True, capture_output=True, env=alike)
    return _processor() - began


def _processor() -> float:
    """Seconds that processors have spent on this program's children."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def conformations(folder: Path, passes: int) -> np.ndarray:
    """Means of z after so many passes, [N, zdim]."""
    with open(folder / "out" / f"z.{passes - 1}.pkl", "rb") as file:
        return np.asarray(pickle.load(file))


def volumes(program: str, folder: Path, passes: int, z: np.ndarray) -> list[np.ndarray]:
    """Maps at values of z, [D, D, D] each."""
    np.savetxt(folder / "z.txt", z)
    call = [program, "eval_vol", str(folder / "out" / f"weights.{passes - 1}.pkl")]
    call += ["-c", str(folder / "out" / "config.yaml"), "--zfile", str(folder / "z.txt")]
    subprocess.run([*call, "-o", str(folder / "maps")], check=True, capture_output=True)
    found = []
    for path in sorted((folder / "maps").glob("*.mrc")):
        with mrcfile.open(path) as file:
            found.append(file.data.copy())
    return found
