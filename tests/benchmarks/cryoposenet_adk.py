"""CryoPoseNet's experiment: adenylate kinase from nothing by encoders, without and with noise.

    python tests/benchmarks/cryoposenet_adk.py [--presets a,b] [--snr 0,0.1] [--n N] [--box D]
                                               [--pixel-size A] [--structure FILE]
                                               [--set [preset:]name=value ...] [--reference MAP]
                                               [--low-pass A] [--seed N] [--threads N] [--out DIR]

Nashed et al. 2021 draw 9000 images of 128 x 128 of 4AKE, without noise (SNR 0 here) and with it.
Ours have CTFs, uniform rotations and no shifts. Prints a row per preset and noise: minutes, last
nats per image, the resolution in pixels at which the FSC with the truth falls below 0.5 (after
alignment over rotation, shift and hand; 2 is Nyquist), the correlation of the map with its best
mirror image (1: it has a plane of symmetry), that of the truth, and median rotation errors in
degrees, for the better hand: of q's answer, and of the better one of its answers to the image and
to the image turned by 180 degrees, which compete under CryoAI's loss.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

from judged import answers, arguments, fitted, mirror_image, pixels
from mixtures import NO_NOISE, Truth, mixed, written

from cryoprob.inference.result import FitResult
from cryoprob.io.structures import adk, density, read_structure
from cryoprob.metrics.alignment import align_maps
from cryoprob.metrics.fsc import fsc
from cryoprob.metrics.pose_error import align_poses, pose_error
from cryoprob.particles import ParticleStack

CENTERED = 1e-3


def molecule(given: argparse.Namespace) -> torch.Tensor:
    """The open form as a map, [1, D, D, D]."""
    there = given.structure.exists()
    atoms = read_structure(given.structure, chain="A") if there else adk("open")
    print(f"{len(atoms)} atoms {'of ' + given.structure.name if there else '(embedded)'}")
    return density(atoms, given.box, given.pixel_size)[None]


def degrees(result: FitResult, stack: ParticleStack, truth: Truth) -> tuple[float, float]:
    """Median rotation error of q's answer, and of the better one of two."""
    own, other = (part.double() for part in answers(result.fitted, stack))
    motion = align_poses(own, truth.rotation)
    told = [pose_error(p, None, truth.rotation, None, motion).rotation_deg for p in (own, other)]
    return float(told[0].median()), float(torch.minimum(*told).median())


def row(
    name: str, snr: float, stack: ParticleStack, truth: Truth, given: argparse.Namespace
) -> str:
    """One fit, judged."""
    with tempfile.TemporaryDirectory() as scratch:
        star = written(stack, Path(scratch))
        out = (given.out or Path(scratch)) / f"{name}-{snr:g}-{given.seed}"
        result, minutes = fitted(name, star, given, out)
    pixel, target = stack.pixel_size, truth.maps[0]
    found = align_maps(result.volume, target, pixel_size=pixel)
    curve = fsc(found.move_map(result.volume, pixel), target)
    own, better = degrees(result, stack, truth)
    return (
        f"{name:12} {snr:5g} {minutes:8.1f} {result.history[-1]['bound']:10.2f}"
        f" {pixels(curve, 0.5):7.2f} {mirror_image(result.volume, pixel):7.2f}"
        f" {mirror_image(target, pixel):6.2f} {own:8.1f} {better:8.1f}"
    )


def main() -> None:
    """Run the table."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "data" / "structures"
    parser = arguments(__doc__)
    parser.add_argument("--structure", type=Path, default=beside / "4akeA_alg_fixed.pdb")
    parser.add_argument("--presets", default="cryoposenet,cryoai")
    parser.add_argument("--snr", default="0,0.1")
    parser.add_argument("--n", type=int, default=3000)
    parser.add_argument("--box", type=int, default=32)
    parser.add_argument("--pixel-size", type=float, default=3.0)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    maps, rows = molecule(given), []
    for snr in map(float, given.snr.split(",")):
        size = (given.pixel_size, [given.n], snr or NO_NOISE, given.box, given.seed)
        stack, truth = mixed(maps, *size, shift_sd=CENTERED)
        for name in given.presets.split(","):
            rows.append(row(name, snr, stack, truth, given))
            print(rows[-1], flush=True)
    print("preset         SNR  minutes       nats  pixels  mirror  truth  degrees   better")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
