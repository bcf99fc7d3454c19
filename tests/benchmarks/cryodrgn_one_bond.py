"""CryoDRGN's experiment of section 5.3: one bond of a protein turns; a map for every image.

    python tests/benchmarks/cryodrgn_one_bond.py [--presets a,b] [--structure FILE] [--residue N]
                                                 [--turn DEGREES] [--states K] [--n N] [--snr S]
                                                 [--set [preset:]name=value ...] [--reference MAP]
                                                 [--low-pass A] [--seed N] [--threads N]
                                                 [--out DIR]

Zhong et al. 2020 turn one bond of a complex through 200 models and draw 500 images of 64 x 64 of
each (11.25 A a pixel, uniform rotations, shifts; section 5.3 names neither noise nor CTF, and none
is drawn here unless ``--snr`` is given). Ours is adenylate kinase, open, whose bond psi of residue
121 turns the LID domain and all that follows. Prints a row per preset: minutes, nats per image,
Spearman correlation of the leading principal coordinate with the angle, median rotation error, and
for 50 images the resolution in pixels, by FSC 0.143, 0.5 and 0.9, of the map at the image's
coordinates (or of its class) against the true map of the image's own model, as mean (median); 2 is
the best possible. Half of the molecule stays, so that one map for all images (the first row, exact
EM at known poses) has an FSC of 0.7 with each of them: only 0.9 tells. Where poses are unknown, one
image's map gives the frame (rotation, shift, hand) of all; a class has its own.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import roma
import torch
from scipy.stats import spearmanr
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

from judged import arguments, fitted, pixels
from mixtures import NO_CTF, NO_NOISE, Truth, mixed, written

from cryoprob.gaussians import gaussian_density
from cryoprob.inference.result import FitResult
from cryoprob.inference.treatments.known import Known
from cryoprob.io.structures import Atoms, read_structure
from cryoprob.metrics.alignment import align_maps
from cryoprob.metrics.fsc import fsc
from cryoprob.metrics.pose_error import align_poses, pose_error
from cryoprob.metrics.principal_axes import principal_axes

BOX, PIXEL_SIZE = 64, 1.5
SD = 0.6 * PIXEL_SIZE
JUDGED, THRESHOLDS = 50, (0.143, 0.5, 0.9)


def turned(atoms: Atoms, residue: int, degrees: float) -> Tensor:
    """Positions [n, 3] after what follows a residue has turned about its CA-C bond."""
    own = atoms.numbers == residue
    named = {name: i for i, name in enumerate(atoms.names) if own[i]}
    base, top = atoms.positions[named["CA"]], atoms.positions[named["C"]]
    angle = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    turn = roma.rotvec_to_rotmat(angle * (top - base) / (top - base).norm())
    moves = atoms.numbers > residue
    moves[named["O"]] = True
    return torch.where(moves[:, None], (atoms.positions - top) @ turn.mT + top, atoms.positions)


def models(given: argparse.Namespace) -> Tensor:
    """Maps of all angles in the frame of what stays, [K, D, D, D]."""
    atoms = read_structure(given.structure, chain="A")
    angles = torch.linspace(0, given.turn, given.states).tolist()
    places = torch.stack([turned(atoms, given.residue, angle) for angle in angles])
    places = places - places.mean((0, 1))
    weights = atoms.masses()[:, None]
    like = torch.full_like(weights, SD**2)
    maps = [gaussian_density(xyz, weights, like, BOX, PIXEL_SIZE) for xyz in places]
    moved = (places[-1] - places[0]).square().sum(1).mean().sqrt()
    print(f"{len(atoms)} atoms, {given.states} models, {moved:.1f} A from end to end")
    return torch.stack(maps)


def own_map(result: FitResult, image: int) -> tuple[int, Tensor]:
    """The map of an image's coordinates or class, and the class (-1: it has none)."""
    states, half = result.states, result.fitted
    if states is None:
        return -1, result.volume
    if states.shares.numel():
        best = int(states.shares[image].argmax())
        return best, states.maps[f"class_{best + 1}"]
    weights = half.guide.volume.coefficients.detach()
    with torch.no_grad():
        return -1, half.model.volume.density(weights, states.mean[image].to(weights)).float()


def resolutions(result: FitResult, truth: Truth) -> Tensor:
    """Pixels by each threshold, of 50 images, [50, 3]."""
    found, frames = [], {}
    known = isinstance(result.fitted.guide.rotation, Known)
    index = torch.linspace(0, len(truth.state) - 1, JUDGED).round().long().tolist()
    for image in sorted(index, key=lambda i: abs(i - index[JUDGED // 2])):  # the middle one first
        part, volume = own_map(result, image)
        target = truth.maps[truth.state[image]]
        if not known:
            if part not in frames:
                frames[part] = align_maps(volume, target, pixel_size=PIXEL_SIZE)
            volume = frames[part].move_map(volume, PIXEL_SIZE)
        curve = fsc(volume, target)
        found.append([pixels(curve, threshold) for threshold in THRESHOLDS])
    return torch.tensor(found)


def order(result: FitResult, truth: Truth) -> float:
    """Spearman correlation of the leading coordinate with the angle; nan of classes."""
    if result.states is None or not result.states.mean.numel():
        return float("nan")
    mean = result.states.mean
    leading = principal_axes(mean).project(mean)[:, 0]
    return abs(float(spearmanr(leading.numpy(), truth.state.numpy()).statistic))


def degrees(result: FitResult, truth: Truth) -> float:
    """Median rotation error, for the better hand."""
    own = result.posterior.rotation.double()
    motion = align_poses(own, truth.rotation)
    return pose_error(own, None, truth.rotation, None, motion).median_rotation_deg


def row(name: str, star: Path, truth: Truth, given: argparse.Namespace, out: Path) -> str:
    """One preset, fitted and judged."""
    result, minutes = fitted(name, star, given, out)
    told = resolutions(result, truth)
    both = zip(told.mean(0).tolist(), told.median(0).values.tolist(), strict=True)
    return (
        f"{name:15} {minutes:7.1f} {float(result.posterior.bound.mean()):11.2f}"
        f" {order(result, truth):9.3f} {degrees(result, truth):8.1f}"
        + "".join(f"  {mean:5.2f} ({median:5.2f})" for mean, median in both)
    )


def main() -> None:
    """Run the table."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "data" / "structures"
    parser = arguments(__doc__)
    parser.add_argument("--structure", type=Path, default=beside / "4akeA_alg_fixed.pdb")
    parser.add_argument("--residue", type=int, default=121)
    parser.add_argument("--turn", type=float, default=-60.0)
    parser.add_argument("--presets", default="one map,cryodrgn,cryodrgn-bnb,relion-class3d")
    parser.add_argument("--states", type=int, default=50)
    parser.add_argument("--n", type=int, default=3000)
    parser.add_argument("--snr", type=float, default=NO_NOISE)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    counts = [given.n // given.states] * given.states
    size = (PIXEL_SIZE, counts, given.snr, BOX, given.seed)
    stack, truth = mixed(models(given), *size, microscope=NO_CTF)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        star = written(stack, Path(scratch))
        for name in given.presets.split(","):
            out = (given.out or Path(scratch)) / f"{name.replace(' ', '-')}-{given.seed}"
            rows.append(row(name, star, truth, given, out))
            print(rows[-1], flush=True)
    print(
        "preset          minutes        nats  Spearman  degrees  pixels at .143         at .5         at .9"
    )
    print("\n".join(rows))


if __name__ == "__main__":
    main()
