"""Two states of adenylate kinase, 75 to 25, poses unknown: confusion and weights of the classes.

    python tests/benchmarks/two_states.py [--data FOLDER] [--n N] [--box D] [--snr S] [--order N]
                                          [--low-pass A] [--seed N] [--threads N] [--one]
                                          [--presets a,b] [--set name=value ...] [--warm A]
                                          [--found] [--price N]

Images are drawn from the closed and the open end of the adk-path set (CTF, uniform poses, shifts),
classes and poses are summed out from both ends low-passed (``--one``: from their mean, split by
chance). Prints a line per step (nats per image, resolution, grid, weights, confusion), then the
confusion, the weights, and for each state the last shell at which the FSC of its map with the
truth stays above 0.5. With ``--presets`` networks in their place, from nothing, from the mean
of both ends low-passed (``--warm A``) or from a map that cryosparc-abinitio finds (``--found``,
then low-passed to 20 A): a row for each,
minutes, nats, confusion of two means of the first principal coordinate, median rotation error
after alignment of the poses (the better hand), degrees; and what its one pose an image and its law
of z cost in nats per image, of N images, on the grid of the largest order (``--price N``).
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

from mixtures import Truth, mixed, written

from cryoprob.app.fit import configure
from cryoprob.fourier.shells import low_pass
from cryoprob.inference.amplitude import match_amplitude
from cryoprob.inference.build import build_guide, build_model, image_power
from cryoprob.inference.conformation_budget import conformation_budget
from cryoprob.inference.em import EM, EMState
from cryoprob.inference.families import Recipe, family
from cryoprob.inference.half import Half
from cryoprob.inference.latent import centers
from cryoprob.inference.learn import seeded
from cryoprob.inference.loop import Quiet
from cryoprob.inference.presets.base import Built, Scene
from cryoprob.inference.presets.menu import load
from cryoprob.inference.run import run_fit
from cryoprob.inference.schedule import Schedule
from cryoprob.inference.solvent import Solvent
from cryoprob.inference.split import split
from cryoprob.io.mrc import read_map
from cryoprob.io.mrc_writer import write_map
from cryoprob.metrics.alignment import align_maps
from cryoprob.metrics.fsc import fsc, last_shell
from cryoprob.metrics.pose_error import align_poses, pose_error
from cryoprob.metrics.principal_axes import principal_axes
from cryoprob.particles import ParticleStack

SHARE = 0.25


def confusion(shares: Tensor, state: Tensor) -> tuple[float, bool]:
    """Share of images in the wrong class, the classes' names aside, and whether they change."""
    wrong = float((shares.argmax(1) != state).double().mean())
    return min(wrong, 1 - wrong), wrong > 0.5


def start_map(
    given: argparse.Namespace, stack: ParticleStack, truth: Truth
) -> tuple[list[str], float]:
    """The map that networks start from, if any, and its low-pass."""
    folder = Path(tempfile.mkdtemp())
    if given.found:
        star = written(stack, folder / "images")
        options = {"particles": star, "preset": "cryosparc-abinitio", "seed": given.seed}
        config = configure(options | {"threads": given.threads}, [], None, folder / "fit", False)
        began, result = time.time(), run_fit(config, folder / "fit", observer=Quiet())
        mean = torch.einsum("k,kzyx->zyx", torch.bincount(truth.state) / len(stack), truth.maps)
        near = align_maps(result.volume, mean, pixel_size=stack.pixel_size)
        curve = fsc(near.move_map(result.volume, stack.pixel_size), mean)
        minutes, hand = (time.time() - began) / 60, "mirrored" if near.mirrored else "not mirrored"
        print(
            f"   a map in {minutes:.1f} minutes: FSC 0.5 to shell {last_shell(curve, 0.5)}, {hand}"
        )
        return [str(folder / "fit" / "volume.mrc")], given.low_pass
    if not given.warm:
        return [], given.low_pass
    shares = torch.bincount(truth.state) / len(truth.state)
    mean = torch.einsum("k,kzyx->zyx", shares, truth.maps)
    write_map(folder / "mean.mrc", mean, stack.pixel_size)
    return [str(folder / "mean.mrc")], given.warm


def price(built: Built, stack: ParticleStack, plan: Schedule, count: int) -> str:
    """Nats per image that one pose costs, and the law of z, by 5 and 7 nodes of z along each axis."""
    index = torch.linspace(0, len(stack) - 1, count).long()
    told = []
    for nodes in (5, 7):
        options = {"order": plan.max_order, "nodes": nodes, "seed": 1}
        options["objective"] = built.objective
        found = conformation_budget(built.half, stack, index, plan, **options)
        means = [float(part.mean()) for part in (found.evidence, found.pose, found.conformation)]
        told.append(
            f"{nodes} nodes: evidence {means[0]:.2f}, pose {means[1]:.2f}, z {means[2]:.2f}"
        )
    return "   " + "; ".join(told)


def network(name: str, given: argparse.Namespace, stack: ParticleStack, truth: Truth) -> str:
    """A preset on both states."""
    settings = dict(item.split("=") for item in given.set)
    parsed = Schedule.parse(settings)
    plan = Schedule(**{**load(name).plan, **{key: getattr(parsed, key) for key in settings}})
    kind = {"dtype": torch.float32, "device": torch.device("cpu")}
    start = start_map(given, stack, truth)
    scene = Scene(stack, plan, image_power(stack), *start, given.seed, "C1", kind)
    began = time.time()
    with seeded(given.seed):
        built = load(name).build(scene)
    built.begin()
    while not built.state.done:
        record = built.algorithm.step(built.state, stack)
        if built.state.iteration % 10 == 0:
            print(f"   {built.state.iteration:4} {record['bound']:10.2f}", flush=True)
    result = built.finish()
    _, own = centers(principal_axes(result.states.mean).project(result.states.mean)[:, :1], 2, 1)
    wrong = float((own != truth.state).double().mean())
    found, half_turn = result.posterior.rotation.double(), torch.diag(torch.tensor([-1.0, -1, 1]))
    errors = []
    for turned in (found, half_turn.double() @ found):
        motion = align_poses(turned, truth.rotation.double())
        told = pose_error(turned, None, truth.rotation.double(), None, motion)
        errors.append(float(told.rotation_deg.median()))
    row = (
        f"{name:12} {(time.time() - began) / 60:7.1f} {record['bound']:10.2f}"
        f" {min(wrong, 1 - wrong):9.3f} {min(errors):8.1f}"
    )
    return row if not given.price else row + "\n" + price(built, stack, plan, given.price)


def main() -> None:
    """Draw, fit, judge."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "data"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=beside / "adk-path")
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--box", type=int, default=32)
    parser.add_argument("--snr", type=float, default=0.1)
    parser.add_argument("--order", type=int, default=4)
    parser.add_argument("--low-pass", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--one", action="store_true")
    parser.add_argument("--presets", default="")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--warm", type=float, default=0.0)
    parser.add_argument("--found", action="store_true")
    parser.add_argument("--price", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    ends = [read_map(given.data / f"map_frame{end}.mrc") for end in ("00", "19")]
    maps = torch.stack([volume.float() for volume, _ in ends])
    counts = [round(given.n * (1 - SHARE)), round(given.n * SHARE)]
    stack, known = mixed(maps, ends[0][1], counts, given.snr, given.box, given.seed)
    state, truth = known.state, known.maps
    if given.presets:
        print("preset       minutes       nats confusion  degrees")
        for name in given.presets.split(","):
            print(network(name, given, stack, known), flush=True)
        return
    pixel = stack.pixel_size
    plan = Schedule(classes=2, max_order=given.order)
    model = build_model(stack, plan, image_power(stack), radius=2)
    start = torch.stack([low_pass(volume, pixel, given.low_pass) for volume in truth])
    if given.one:
        start = start.mean(0, keepdim=True).expand(2, -1, -1, -1)
    row = family("exact-em")
    recipe = Recipe(model, start, plan, len(stack), given.seed)
    half = Half(model, build_guide(recipe, row, stack, "ignore"), torch.arange(len(stack)))
    algorithm = EM(plan, given.seed, Solvent("auto"))
    em = EMState([half])
    em.shell = max(2, round(given.box * pixel / given.low_pass))
    print(match_amplitude(half, stack, plan, "C1"))
    if given.one:
        split(algorithm, em, stack)
    shares, began = torch.zeros(0, 2), time.time()
    while not em.done:
        record = algorithm.step(em, stack)
        shares = algorithm.e_step(half, stack, 0).shares if em.done else shares
        weights = ", ".join(f"{w:.3f}" for w in model.conformation.weights.tolist())
        print(
            f"{record['iteration']:3} {record['bound']:10.2f} {record['resolution_A']:6.2f} A"
            f" order {record['order']} weights {weights} {time.time() - began:6.0f} s",
            flush=True,
        )
    wrong, swapped = confusion(shares, state)
    weights = model.conformation.weights.flip(0) if swapped else model.conformation.weights
    print(f"confusion {wrong:.3f}, weights {weights.tolist()}")
    found = half.guide.volume.coefficients.data
    for k, volume in enumerate(found.flip(0) if swapped else found):
        near = align_maps(volume, truth[k], pixel_size=pixel)
        moved = near.move_map(volume, pixel)
        ends = [last_shell(fsc(moved, other), 0.5) for other in truth]
        print(f"state {k}: FSC 0.5 to shell {ends[k]} (with the other state {ends[1 - k]})")


if __name__ == "__main__":
    main()
