"""CryoFIRE's Table 1: two volumes, 90 to 10, poses unknown; images of the fit and others.

    python tests/benchmarks/cryofire_table_1.py [--presets a,b] [--map MAP] [--turn DEGREES]
                                                [--n N] [--test N] [--snr S] [--box D]
                                                [--set [preset:]name=value ...] [--reference MAP]
                                                [--low-pass A] [--seed N] [--threads N] [--out DIR]

Levy et al. 2022 mix two states of the 80S ribosome, 50,000 images of 128 x 128 or more, SNR -10
dB, CTFs. Ours is the 70S ribosome cropped to 32 x 32, whose smaller lobe has turned about the long
axis in the minor volume. Prints, in the paper's columns, a row for the images of the fit and one
for those it never saw: minutes (milliseconds an image for the others), nats per image, confusion
of two clusters of the leading principal coordinate (0.1: saying nothing), resolution in pixels by
FSC 0.5 of the maps at the centers of the larger and the smaller cluster (and of the minor map's
FSC with the major truth), median and mean error of the view direction in degrees, and of the shift
median and mean square in pixels, after alignment of the poses (rotation, shift, hand). cryofire
reads unseen images off by its encoder, the better of its two answers; cryodrgn2 searches twice at
the trained volume. ``cryodrgn`` (true poses) and ``relion-class3d`` (two classes, poses summed
out) are controls. ``a+b`` fits in stages: b at the poses that a found, where b takes poses as
known, else from a's map (``cryosparc-abinitio+cryodrgn2+cryodrgn``: images alone are given).
"""

import argparse
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import roma
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

from judged import Read, arguments, fitted, pixels, read_off, view_error
from mixtures import Truth, mixed, written

from cryoprob.inference.alternating import search_poses
from cryoprob.inference.config import FitConfig
from cryoprob.inference.half import Half
from cryoprob.inference.latent import centers
from cryoprob.inference.learn import seeded
from cryoprob.inference.presets.menu import load
from cryoprob.inference.result import FitResult
from cryoprob.inference.treatments.modal import Modal
from cryoprob.io.mrc import read_map
from cryoprob.metrics.alignment import align_maps
from cryoprob.metrics.fsc import fsc
from cryoprob.metrics.motion import Motion
from cryoprob.metrics.pose_error import align_poses
from cryoprob.metrics.principal_axes import principal_axes
from cryoprob.particles import ParticleStack

SHARE, STATES, PASSES = 0.1, 16, 2


def lobes(volume: Tensor, pixel_size: float, degrees: float) -> Tensor:
    """A map, and the same with its smaller lobe turned about the long axis, [2, D, D, D]."""
    box = len(volume)
    axis = (torch.arange(box) - box // 2) * pixel_size
    places = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij")[::-1], -1).flatten(0, 2)
    weight = (volume * (volume > 0.2 * volume.max())).flatten()
    middle = (weight[:, None] * places).sum(0) / weight.sum()
    spread = (weight[:, None] * (places - middle)).mT @ (places - middle)
    long = torch.linalg.eigh(spread.double()).eigenvectors[:, -1]
    along = (places - middle).double() @ long
    if weight[along > 0].sum() > weight[along < 0].sum():
        along = -along
    lobe = torch.sigmoid(along / pixel_size).reshape(volume.shape).float() * volume
    turn = roma.rotvec_to_rotmat(torch.deg2rad(torch.tensor(degrees).double()) * long)
    motion = Motion(turn, middle.double() - turn @ middle.double(), False)
    return torch.stack([volume, volume - lobe + motion.move_map(lobe, pixel_size)])


def parts(given: argparse.Namespace) -> list[tuple[ParticleStack, Truth]]:
    """Images to fit and images to judge, each with its truth."""
    volume, pixel = read_map(given.map)
    maps, total = lobes(volume.float(), pixel, given.turn), given.n + given.test
    counts = [total - round(SHARE * total), round(SHARE * total)]
    stack, truth = mixed(maps, pixel, counts, given.snr, given.box, given.seed)
    curve = fsc(*truth.maps)
    print(f"the two volumes agree to {pixels(curve, 0.5):.2f} pixels (FSC 0.5)")
    order = torch.randperm(total, generator=torch.Generator().manual_seed(given.seed))
    found = []
    for index in (order[: given.n].sort().values, order[given.n :].sort().values):
        own = truth.state[index], truth.rotation[index], truth.shift[index]
        found.append((stack.subset(index), Truth(*own, truth.maps)))
    return found


def clusters(values: Tensor, seed: int) -> Tensor:
    """Of two clusters along the first principal axis, which images are in the smaller one."""
    _, own = centers(principal_axes(values).project(values)[:, :1], 2, seed)
    return own == int(own.sum() * 2 < len(own))


def confusion(minor: Tensor, truth: Truth) -> float:
    """Share of images in the wrong cluster, the clusters' names aside."""
    wrong = float((minor != (truth.state == 1)).double().mean())
    return min(wrong, 1 - wrong)


def poses(rotation: Tensor, shift: Tensor, truth: Truth, pixel_size: float) -> str:
    """Errors of views and shifts."""
    rotation, shift = rotation.double(), shift.double()
    motion = align_poses(rotation, truth.rotation, shift, truth.shift)
    view = view_error(rotation, shift, truth.rotation, motion)
    _, moved = motion.move_poses(rotation, shift)
    far = (moved - truth.shift).norm(dim=1) / pixel_size
    return (
        f"{view.median():6.1f} / {view.mean():6.1f}"
        f" {far.median():6.2f} / {far.square().mean():6.2f}"
    )


def maps_of(result: FitResult, minor: Tensor) -> tuple[Tensor, Tensor]:
    """Maps of the larger and of the smaller cluster (or class)."""
    states, half = result.states, result.fitted
    if states.shares.numel():
        order = states.shares.sum(0).argsort(descending=True).tolist()
        return states.maps[f"class_{order[0] + 1}"], states.maps[f"class_{order[1] + 1}"]
    weights, found = half.guide.volume.coefficients.detach(), []
    with torch.no_grad():
        for own in (~minor, minor):
            place = states.mean[own].mean(0).to(weights)
            found.append(half.model.volume.density(weights, place).float())
    return found[0], found[1]


def resolutions(result: FitResult, minor: Tensor, truth: Truth) -> str:
    """Pixels of both maps, in the frame of the major one, and of the minor one with the other."""
    major, other = maps_of(result, minor)
    motion = align_maps(major, truth.maps[0], pixel_size=result.pixel_size)
    major, other = (motion.move_map(one, result.pixel_size) for one in (major, other))
    pairs = (major, truth.maps[0]), (other, truth.maps[1]), (other, truth.maps[0])
    told = [pixels(fsc(*pair), 0.5) for pair in pairs]
    return f"{told[0]:6.2f} / {told[1]:6.2f} ({told[2]:6.2f})"


def unseen(result: FitResult, stack: ParticleStack, settings: Path, seed: int) -> Read:
    """What a fit of cryofire or cryodrgn2 says of images that it never saw."""
    config, half = FitConfig.from_toml(settings), result.fitted
    if config.preset == "cryodrgn2":
        forget_poses(half, len(stack))
        plan = config.schedule
        search = Modal(plan.beam, coarse_order=plan.coarse_order)
        for _ in range(PASSES):
            search_poses(half, stack, plan, search, seed=seed, states=STATES)
    with seeded(seed):
        return read_off(half, stack, both=config.preset == "cryofire")


def forget_poses(half: Half, count: int) -> None:
    """Tables of poses of so many other images: none turned, none moved."""
    turns, moves = half.guide.rotation, half.guide.shift
    for table, nothing in ((turns, torch.eye(3)), (moves, torch.zeros(2))):
        values = nothing.to(table.numbers).expand(count, *nothing.shape)
        table.numbers = nn.Parameter(table.law.numbers(values).clone())
    half.index = torch.arange(count)


def fit_row(
    result: FitResult, minutes: float, name: str, stack: ParticleStack, truth: Truth, seed: int
) -> str:
    """The fit, judged on its own images."""
    states, own = result.states, result.posterior
    found = Read(own.rotation, own.shift, states.mean, own.bound)
    if states.shares.numel():
        minor = states.shares.argmax(1) != states.heaviest
    else:
        minor = clusters(found.mean, seed)
    return (
        f"{name:15} fit   {minutes:7.1f} {float(own.bound.mean()):10.2f}"
        f" {confusion(minor, truth):6.3f} {resolutions(result, minor, truth)}"
        f" {poses(found.rotation, found.shift, truth, stack.pixel_size)}"
    )


def in_stages(
    names: list[str], star: Path, given: argparse.Namespace, out: Path
) -> tuple[FitResult, float]:
    """The last of several fits, each from the poses or the map of the one before; all minutes."""
    result, minutes = fitted(names[0], star, given, out / names[0])
    for before, name in pairwise(names):
        more: dict[str, object] = {"reference": None}
        if load(name).config.get("poses") == "known":
            star = out / before / "particles.star"
        else:
            more["reference"], more["low_pass_A"] = out / before / "volume.mrc", given.low_pass
        result, spent = fitted(name, star, given, out / name, **more)
        minutes += spent
    return result, minutes


def rows(
    name: str, star: Path, sets: list[tuple[ParticleStack, Truth]], given: argparse.Namespace
) -> list[str]:
    """One preset, fitted and judged on its images and, where it can be, on the others."""
    held, truth = sets[1]
    out = (given.out or star.parent) / f"{name}-{given.seed}"
    if "+" in name:
        result, minutes = in_stages(name.split("+"), star, given, out)
    else:
        result, minutes = fitted(name, star, given, out)
    line = fit_row(result, minutes, name, *sets[0], given.seed)
    if name not in ("cryofire", "cryodrgn2"):
        return [line]
    began = time.time()
    seen = unseen(result, held, out / "config.toml", given.seed)
    each = 1000 * (time.time() - began) / len(held)
    wrong = confusion(clusters(seen.mean, given.seed), truth)
    where = poses(seen.rotation, seen.shift, truth, held.pixel_size)
    return [line, f"{name:15} other {each:7.1f} {seen.nats.mean():10.2f} {wrong:6.3f}{where:>56}"]


def main() -> None:
    """Run the table."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "data" / "relion-70s"
    parser = arguments(__doc__)
    parser.add_argument("--map", type=Path, default=beside / "truth.mrc")
    parser.add_argument("--turn", type=float, default=60.0)
    parser.add_argument("--presets", default="cryofire,cryodrgn2,cryodrgn,relion-class3d")
    parser.add_argument("--n", type=int, default=2000)
    parser.add_argument("--test", type=int, default=500)
    parser.add_argument("--snr", type=float, default=0.1)
    parser.add_argument("--box", type=int, default=32)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    given.set = ["relion-class3d:classes=2", *given.set]
    for name in given.presets.replace("+", ",").split(","):
        load(name)
    sets, lines = parts(given), []
    with tempfile.TemporaryDirectory() as scratch:
        star = written(sets[0][0], Path(scratch))
        for name in given.presets.split(","):
            lines += rows(name, star, sets, given)
            print(lines[-1], flush=True)
    print(
        "preset          images   time       nats  conf. pixels major / minor (and other)", end=""
    )
    print("       view, degrees         shift")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
