"""Conformations of adenylate kinase at known poses, by presets: order along the path, and maps.

    python tests/benchmarks/conformations.py [--presets a,b,...] [--data FOLDER] [--box D]
                                             [--set name=value ...] [--seed N] [--threads N]
                                             [--out DIR]

2000 images between closed and open (SNR 0.1). Prints a row per preset: minutes, nats per image,
Spearman correlation with the true progress of the leading principal coordinate, and of the place
along a principal curve (which sees the coordinates alone), and the FSC with each image's own true
frame, averaged over the shells to half of Nyquist and over 100 images: of the map at the image's
coordinates, and of the map of the mean coordinates. ``one map`` is exact EM at known poses.
``cryofold`` and ``e2gmm:structure`` start from the atoms of frame 0.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

from chains import write_frame
from judged import basic_arguments
from scenes import trimmed

from cryoprob.app.fit import configure
from cryoprob.fourier.transforms import crop_map
from cryoprob.gaussians import gaussian_density
from cryoprob.inference.loop import Quiet
from cryoprob.inference.result import FitResult
from cryoprob.inference.run import run_fit
from cryoprob.metrics.conformation_error import path_error
from cryoprob.metrics.fsc import fsc
from cryoprob.particles import ParticleStack

JUDGED = 100


def frame_maps(data: Path, box: int) -> Tensor:
    """The true map of every frame, [20, D, D, D]."""
    with np.load(data / "atoms.npz") as atoms:
        weight = torch.from_numpy(atoms["map_scale"] * atoms["atomic_number"]).double()
        variance = torch.full_like(weight, float(atoms["sigma"]) ** 2)[:, None]
        places = torch.from_numpy(atoms["xyz"]).double()
    maps = [gaussian_density(xyz, weight[:, None], variance, 64, 1.5) for xyz in places]
    return torch.stack([crop_map(one, box) for one in maps]).float()


def likeness(found: Tensor, truth: Tensor) -> float:
    """Mean FSC of a map with another up to half of Nyquist."""
    return float(fsc(found, truth)[1 : len(truth) // 4 + 1].mean())


def judged(result: FitResult, maps: Tensor, frame: Tensor) -> tuple[float, float]:
    """Mean likeness of maps at coordinates, and of the mean's map, to each image's frame."""
    index = torch.linspace(0, len(frame) - 1, JUDGED).long()
    own, mean = [], []
    half = result.fitted
    weights = half.guide.volume.coefficients.detach()
    for i in index.tolist():
        truth = maps[frame[i]]
        mean.append(likeness(result.volume, truth))
        if result.states is not None:
            place = result.states.mean[i].to(weights)
            with torch.no_grad():
                density = half.model.volume.density(weights, place)
            own.append(likeness(density.float(), truth))
    return sum(own) / len(own) if own else float("nan"), sum(mean) / len(mean)


def row(
    name: str, given: argparse.Namespace, maps: Tensor, frame: Tensor, progress: Tensor
) -> str:
    """One preset, fitted and judged."""
    star = given.data / "truth.star"
    options = {"particles": star, "box": given.box, "seed": given.seed, "threads": given.threads}
    preset, _, start = name.partition(":")
    options |= {"preset": preset} if name != "one map" else {"poses": "known"}
    began = time.time()
    with tempfile.TemporaryDirectory() as folder:
        if start or preset == "cryofold":
            write_frame(Path(folder) / "frame_0.pdb", given.data)
            options["reference"] = str(Path(folder) / "frame_0.pdb")
        out = (
            Path(folder) / "fit"
            if given.out is None
            else given.out / name.replace(" ", "-").replace(":", "-")
        )
        config = configure(options, given.set if name != "one map" else [], None, out, False)
        config = trimmed(config) if config.preset else config
        result = run_fit(config, out, observer=Quiet())
    ranks = float("nan"), float("nan")
    if result.states is not None:
        found = path_error(result.states.mean, progress)
        ranks = found.leading, found.curve
    own, mean = judged(result, maps, frame)
    nats, minutes = float(result.posterior.bound.mean()), (time.time() - began) / 60
    rank, curve = ranks
    return f"{name:16} {minutes:7.1f} {nats:10.2f} {rank:9.3f} {curve:7.3f} {own:7.3f} {mean:7.3f}"


def main() -> None:
    """Run the table."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "data"
    parser = basic_arguments(__doc__)
    parser.add_argument(
        "--presets", default="one map,ppca,cryodrgn,cryofold,e2gmm,e2gmm:structure"
    )
    parser.add_argument("--data", type=Path, default=beside / "adk-path")
    parser.add_argument("--box", type=int, default=32)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    stack = ParticleStack.read(given.data / "truth.star", need=("ctf", "rotation", "shift"))
    columns = stack.table.columns
    frame = torch.from_numpy(columns.numbers("frameIndex")).long()
    progress = torch.from_numpy(columns.numbers("frameProgress"))
    maps = frame_maps(given.data, given.box)
    print("preset           minutes       nats  Spearman   curve    at z    mean")
    for name in given.presets.split(","):
        print(row(name, given, maps, frame, progress), flush=True)


if __name__ == "__main__":
    main()
