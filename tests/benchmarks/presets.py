"""Every preset at its full size here: what comes out, in the words of `cryoprob evaluate`.

    python tests/benchmarks/presets.py [--presets a,b,...] [--data FOLDER] [--set name=value ...]
                                       [--seed N] [--threads N] [--out DIR]

Homogeneous systems get the 70S ribosome set (2000 images of 64 x 64), from the truth low-passed to
40 A or from nothing; systems of conformations the adk-path set (2000 images cropped to 32 x 32, SNR
0.1), with its poses where the system knows them, else from the mean map low-passed to 20 A or from
the structure of frame 0. Prints a row per preset: minutes, nats per image, resolution by FSC 0.5
with the truth (of the mean map, where things move), median rotation error, and the Spearman
correlation of the leading coordinate, and of the place along a principal curve, with the true
progress. The fits are those of ``cryoprob fit --preset NAME``.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

from chains import write_frame
from judged import basic_arguments
from scenes import trimmed

from cryoprob.app.evaluate import evaluate
from cryoprob.app.fit import configure
from cryoprob.inference.loop import Quiet
from cryoprob.inference.presets.menu import PRESETS
from cryoprob.inference.run import run_fit

RIBOSOME = ("relion-refine3d", "cryosparc-refine", "fstdiff", "cryoai", "cryoposenet")
NOTHING = ("cryosparc-abinitio", "e2gmm")
STRUCTURE = ("cryofold", "atomvae")
KNOWN = ("cryodrgn", "cryofold", "3dva", "ppca", "covariance", "e2gmm")


def options(name: str, data: Path, folder: Path) -> tuple[dict[str, object], Path]:
    """What the command line would have of a preset, and where the truth is."""
    if name in RIBOSOME or name == "cryosparc-abinitio":
        truth = data / "relion-70s"
        given: dict[str, object] = {"particles": truth / "particles.star", "low_pass_A": 40.0}
        start = truth / "truth.mrc"
    else:
        truth = data / "adk-path"
        table = "truth.star" if name in KNOWN else "particles.star"
        given = {"particles": truth / table, "low_pass_A": 20.0}
        given["box"] = 16 if name == "covariance" else 32
        start = truth / "map_mean.mrc"
    if name in STRUCTURE:
        start = folder / "frame_0.pdb"
        write_frame(start, truth)
    if name not in NOTHING and (name in STRUCTURE or name not in KNOWN):
        given["reference"] = str(start)
    return given, truth


def row(name: str, given: argparse.Namespace, folder: Path) -> str:
    """One preset, fitted and evaluated."""
    command, truth = options(name, given.data, folder)
    command |= {"preset": name, "seed": given.seed, "threads": given.threads}
    out = folder / name
    config = trimmed(configure(command, given.set, None, out, False))
    began = time.time()
    result = run_fit(config, out, observer=Quiet())
    minutes, told = (time.time() - began) / 60, evaluate(out, truth).numbers()
    values = (
        told.resolution_05_A,
        told.median_rotation_deg,
        told.leading_rank_correlation,
        told.curve_rank_correlation,
    )
    words = " ".join(f"{value:9.3f}" if value is not None else " " * 9 for value in values)
    return f"{name:18} {minutes:7.1f} {float(result.posterior.bound.mean()):10.2f} {words}"


def main() -> None:
    """Print the table."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "data"
    parser = basic_arguments(__doc__)
    parser.add_argument("--presets", default=",".join(PRESETS))
    parser.add_argument("--data", type=Path, default=beside)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(
        "preset             minutes       nats         A   degrees   leading     curve", flush=True
    )
    with tempfile.TemporaryDirectory() as name:
        for preset in given.presets.split(","):
            print(row(preset, given, given.out or Path(name)), flush=True)


if __name__ == "__main__":
    main()
