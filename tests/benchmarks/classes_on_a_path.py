"""Classes of a molecule that moves along a path: do K classes recover ordered states?

    python tests/benchmarks/classes_on_a_path.py [--data FOLDER] [--box D] [--classes 2,3,4]
                                                 [--poses known|ignore] [--seed N] [--threads N]
                                                 [--set name=value ...]

2000 images of adenylate kinase between closed and open (SNR 0.1), the relion-class3d preset: with
known poses from nothing, with ``--poses ignore`` from the mean map low-passed to 20 A; classes are
split by chance. Prints for each K: minutes, nats per image, Spearman correlation of the class (in
the order of the path) with the true progress, the share of images outside of the stretch of the
path that is their class's (best cuts), and each class's weight and quartiles of progress.
"""

import argparse
import tempfile
import time
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr

from cryoprob.app.fit import configure
from cryoprob.inference.loop import Quiet
from cryoprob.inference.result import FitResult
from cryoprob.inference.run import run_fit
from cryoprob.particles import ParticleStack

FRAMES = 20


def outside(label: np.ndarray, frame: np.ndarray, count: int) -> float:
    """Least share of images outside of their class's stretch, over all ways to cut the path."""
    table = np.zeros((count, FRAMES + 1))
    np.add.at(table, (label, frame + 1), 1)
    below = table.cumsum(1)  # images of a class in frames before each cut
    best = 0.0
    for inner in combinations(range(1, FRAMES), count - 1):
        cuts = [0, *inner, FRAMES]
        inside = sum(below[k, cuts[k + 1]] - below[k, cuts[k]] for k in range(count))
        best = max(best, inside)
    return 1 - best / len(label)


def row(given: argparse.Namespace, count: int, frame: np.ndarray, progress: np.ndarray) -> str:
    """One number of classes."""
    options = {
        "particles": given.data / "truth.star",
        "preset": "relion-class3d",
        "box": given.box,
    }
    options |= {"seed": given.seed, "threads": given.threads, "poses": given.poses}
    if given.poses == "ignore":
        options |= {"reference": str(given.data / "map_mean.mrc"), "low_pass_A": 20.0}
    began = time.time()
    with tempfile.TemporaryDirectory() as folder:
        settings = [f"classes={count}", *given.set]
        config = configure(options, settings, None, Path(folder) / "fit", False)
        result: FitResult = run_fit(config, Path(folder) / "fit", observer=Quiet())
    shares = result.states.shares.numpy()
    mean = (shares * progress[:, None]).sum(0) / shares.sum(0)
    shares = shares[:, mean.argsort()]
    label = shares.argmax(1)
    rank = float(spearmanr(shares @ np.arange(count), progress).statistic)
    told = []
    for k in range(count):
        low, middle, high = np.quantile(progress[label == k], [0.25, 0.5, 0.75])
        told.append(f"{(label == k).mean():.2f} ({low:.2f} {middle:.2f} {high:.2f})")
    nats = float(result.posterior.bound.mean())
    minutes, wrong = (time.time() - began) / 60, outside(label, frame, count)
    return f"{count} {minutes:7.1f} {nats:10.2f} {rank:9.3f} {wrong:8.3f}  {', '.join(told)}"


def main() -> None:
    """Print the table."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "data"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=beside / "adk-path")
    parser.add_argument("--box", type=int, default=32)
    parser.add_argument("--classes", default="2,3,4")
    parser.add_argument("--poses", default="known")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--set", action="append", default=[])
    given = parser.parse_args()
    stack = ParticleStack.read(given.data / "truth.star", need=("ctf",))
    columns = stack.table.columns
    frame = columns.numbers("frameIndex").astype(int)
    progress = columns.numbers("frameProgress")
    torch.set_num_threads(given.threads)
    print("K minutes       nats  Spearman  outside  weight (quartiles of progress)")
    for count in map(int, given.classes.split(",")):
        print(row(given, count, frame, progress), flush=True)


if __name__ == "__main__":
    main()
