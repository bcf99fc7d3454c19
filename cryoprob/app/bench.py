"""The ``bench`` command: E-step and M-step beside the machine's matrix product, in one run.

The poses of a block of images are scored by one matrix product and summed for the M-step by its
transpose; everything else ought to be small beside them. Each measurement times the package and
the bare products of the same shapes in turn, so that both see the same machine, and takes the
least of several times of each.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

import torch
from pyro.infer import TraceEnum_ELBO
from torch import Tensor

from cryoprob.app.words import duration, say, table
from cryoprob.fourier.bands import full_band
from cryoprob.inference.build import build_model, image_power
from cryoprob.inference.dense import DenseGrid
from cryoprob.inference.e_step import e_step
from cryoprob.inference.filtered import Filtered, filter_images
from cryoprob.inference.guide import Guide
from cryoprob.inference.levels import Level
from cryoprob.inference.m_step import solve_volume, update_noise, update_tau2
from cryoprob.inference.schedule import Schedule
from cryoprob.inference.statistics import reals
from cryoprob.inference.treatments.exact import Exact
from cryoprob.inference.treatments.point import Point
from cryoprob.models.image_likelihood import shift_phase
from cryoprob.models.noises.radial_noise import RadialNoise
from cryoprob.models.particle_model import ParticleModel
from cryoprob.models.poses.gaussian_shift import GaussianShift
from cryoprob.models.poses.uniform_rotation import UniformRotation
from cryoprob.models.simulate import Microscope, draw_images, draw_optics, draw_poses
from cryoprob.models.volumes.fourier_voxels import FourierVoxels
from cryoprob.particles import Batch, ParticleStack
from cryoprob.phantoms import bead_walk

__all__ = [
    "BenchProblem",
    "Pair",
    "enumeration",
    "full_step",
    "least_seconds",
    "m_step",
    "made_up",
    "run_bench",
    "scoring",
]

PIXEL_SIZE, BEADS, SNR = 4.0, 30, 0.1
_RINGS = 2.9
"""Shifts on the square lattice within 2.9 steps: 25."""


@dataclass(frozen=True, eq=False)
class BenchProblem:
    """Images of a made-up molecule with a model of them, and a guide at the true map."""

    model: ParticleModel
    guide: Guide
    stack: ParticleStack

    @property
    def volume(self) -> Tensor:
        """The guide's map, [D, D, D]."""
        return self.guide.volume.coefficients.data

    @property
    def shapes(self) -> tuple[int, int, int]:
        """Rotations Q, shifts T, and real numbers of the band."""
        level = Level.of(self.model)
        return len(level.rotation.cells()), len(level.shift.points()), 2 * len(self.model.band)


@dataclass(frozen=True)
class Pair:
    """Least seconds of something and of its bare matrix products, and the products' work.

    Attributes
    ----------
    name
        What was timed.
    seconds, bare_seconds
        Least of several times.
    operations
        Multiplications and additions of the products.
    """

    name: str
    seconds: float
    bare_seconds: float
    operations: float

    @property
    def ratio(self) -> float:
        """Part of the bare products' speed that is reached.

        >>> Pair("E-step", 0.5, 0.4, 1e9).ratio
        0.8
        """
        return self.bare_seconds / self.seconds

    @property
    def rate(self) -> float:
        """Of the products, operations a second, everything around them included."""
        return self.operations / self.seconds


def made_up(n: int, box: int, radius: int, order: int = 2, *, seed: int = 0) -> BenchProblem:
    """``n`` images at SNR 0.1 with CTF; rotations of an order, 25 shifts, shells to ``radius``."""
    generator = torch.Generator().manual_seed(seed)
    volume = bead_walk(BEADS, box, PIXEL_SIZE, generator)
    optics = draw_optics(n, generator, Microscope())
    noise = RadialNoise(torch.ones(1, box // 2 + 2))
    poses = UniformRotation(), GaussianShift(PIXEL_SIZE)
    truth = ParticleModel(FourierVoxels(box), *poses, noise, PIXEL_SIZE)
    _, variance = draw_poses(truth, volume, optics, n, seed)
    volume *= (SNR / float(variance.mean())) ** 0.5
    drawn, _ = draw_poses(truth, volume, optics, n, seed)
    images = torch.cat(list(draw_images(truth, volume, optics, drawn, seed + 1)))
    stack = ParticleStack.from_arrays(images, PIXEL_SIZE, optics)
    model = build_model(stack, Schedule(), image_power(stack), radius=radius)
    model.rotation = UniformRotation().discretize(order)
    model.shift = GaussianShift(PIXEL_SIZE).discretize(_RINGS * PIXEL_SIZE, PIXEL_SIZE)
    guide = Guide(rotation=Exact(), shift=Exact(), volume=Point(volume))
    return BenchProblem(model, guide, stack)


def least_seconds(runs: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Least time of each function, called in turn ``repeats`` times after a first call."""
    best = [float("inf")] * len(runs)
    for turn in range(repeats + 1):
        for place, run in enumerate(runs):
            began = perf_counter()
            run()
            if turn:
                best[place] = min(best[place], perf_counter() - began)
    return best


def scoring(problem: BenchProblem, count: int, repeats: int = 10) -> Pair:
    """Posteriors of a block of ``count`` images, softmax included, beside one product."""
    rotations, shifts, numbers = problem.shapes
    with torch.no_grad():
        images = _filtered(problem, count)
        grid = DenseGrid.of(problem.model, problem.volume)
        left, right = torch.rand(count * shifts, numbers), torch.rand(rotations, numbers)
        runs = (lambda: grid.posterior(images), lambda: torch.mm(left, right.T))
        own, bare = least_seconds(runs, repeats)
    work = 2.0 * count * shifts * rotations * numbers
    return Pair(f"E-step, blocks of {count}", own, bare, work)


def full_step(problem: BenchProblem, repeats: int = 1) -> Pair:
    """E-step and M-step of all images beside the E-step's two bare products, block by block."""
    rotations, shifts, numbers = problem.shapes
    exact = problem.guide.rotation
    assert isinstance(exact, Exact)
    count = max(1, exact.block_bytes // (4 * shifts * rotations))
    left, right = torch.rand(count * shifts, numbers), torch.rand(rotations, numbers)
    scores, sums = torch.rand(count * shifts, rotations), torch.zeros(rotations, numbers)
    n = len(problem.stack)

    def bare() -> None:
        for start in range(0, n, count):
            rows = min(count, n - start) * shifts
            torch.mm(left[:rows], right.T, out=scores[:rows])
            sums.addmm_(scores[:rows].T, left[:rows])

    own, products = least_seconds((lambda: _step(problem), bare), repeats)
    work = 4.0 * n * shifts * rotations * numbers
    return Pair(f"E-step and M-step of {n}", own, products, work)


def m_step(problem: BenchProblem, repeats: int = 2) -> tuple[float, int]:
    """Least seconds of the exact M-step (from the E-step's sums to the map), and its steps."""
    statistics = e_step(problem.model, problem.guide, problem.stack)
    found = []

    def solve() -> None:
        equations, tau2 = statistics.insertion.equations(), problem.model.linear_volume.tau2
        found.append(solve_volume(equations, tau2, problem.volume, tolerance=1e-3).iterations)

    return least_seconds([solve], repeats)[0], found[-1]


def enumeration(problem: BenchProblem, count: int = 16, repeats: int = 5) -> tuple[Pair, float]:
    """Pyro's enumeration of the model beside the same sum written by hand, on ``count`` images.

    Returns
    -------
    Pair, float
        Times of both, and the difference of their values in nats per image.
    """
    rotations, shifts, numbers = problem.shapes
    model, guide = problem.model, problem.guide
    batch = problem.stack.batch(torch.arange(count), full_band(problem.stack.box))
    whole = Batch(**{**batch.__dict__, "total": count})
    prior = float(model.volume.prior().log_prob(problem.volume))
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    with torch.no_grad():
        runs = (lambda: -elbo.loss(model, guide, whole) - prior, lambda: by_hand(problem, whole))
        values = [float(run()) for run in runs]
        own, bare = least_seconds(runs, repeats)
    work = 2.0 * count * shifts * rotations * numbers
    pair = Pair(f"Pyro's enumeration, {count} images", own, bare, work)
    return pair, abs(values[0] - values[1]) / count


def by_hand(problem: BenchProblem, batch: Batch) -> float:
    """Sum over images of log sum over poses, in one expression for each term."""
    model = problem.model
    inside = len(model.band)
    rotation, shift = model.rotation.prior(), model.shift.prior()
    sigma2 = model.noise(batch.group)
    precision = 1 / sigma2[:, batch.band.shell]
    slices = model.volume.slices(problem.volume, rotation.points)
    phase = shift_phase(model.band, shift.points, model.pixel_size).conj()
    ctf = batch.ctf[:, :inside] * precision[:, :inside]
    rows = reals((batch.image[:, :inside] * ctf)[:, None] * phase)
    scores = (rows.flatten(0, 1) @ reals(slices).T).reshape(len(batch), len(shift.points), -1)
    energy = (ctf * batch.ctf[:, :inside]) @ slices.abs().square().T
    scores += rotation.log_mass - energy[:, None] / 2 + shift.log_mass[:, None]
    square = (batch.image.abs().square() * precision).sum(1)
    constant = torch.log(2 * torch.pi * sigma2) @ batch.band.numbers_per_shell().to(sigma2)
    return float((scores.flatten(1).logsumexp(1) - (square + constant) / 2).double().sum())


def run_bench(
    threads: int | None = None, n: int = 500, box: int = 64, radius: int = 16, order: int = 2
) -> None:
    """Measure and print a table; about half a minute on two cores."""
    if threads:
        torch.set_num_threads(threads)
    problem = made_up(n, box, radius, order)
    rotations, shifts, numbers = problem.shapes
    say(
        f"{n} images of {box} x {box}, {rotations} rotations x {shifts} shifts, "
        f"shells to {radius} ({numbers} numbers); "
        f"torch {torch.__version__}, {torch.get_num_threads()} threads."
    )
    pairs = [scoring(problem, count) for count in (4, 16, 64)]
    enumerated, apart = enumeration(problem)
    pairs += [full_step(problem), enumerated]
    head = ("", "GFLOP/s", "bare product", "part of it")
    table(head, (_row(pair) for pair in pairs))
    seconds, iterations = m_step(problem)
    say(f"\nM-step: {duration(seconds)}, {seconds:.2f} s, {iterations} iterations.")
    say(f"Enumeration and the sum by hand differ by {apart:.1e} nats per image.")


def _row(pair: Pair) -> tuple[str, str, str, str]:
    bare = pair.operations / pair.bare_seconds
    return pair.name, f"{pair.rate / 1e9:.0f}", f"{bare / 1e9:.0f}", f"{100 * pair.ratio:.0f} %"


def _filtered(problem: BenchProblem, count: int) -> Filtered:
    return filter_images(problem.model, problem.stack, torch.arange(count))


def _step(problem: BenchProblem) -> None:
    """One iteration of exact EM; the map itself stays, so that every repeat does the same."""
    model = problem.model
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    statistics = e_step(model, problem.guide, problem.stack)
    equations = statistics.insertion.equations()
    found = solve_volume(equations, model.linear_volume.tau2, problem.volume, tolerance=1e-3)
    update_noise(model, statistics)
    update_tau2(model, found)
    model.load_state_dict(kept)
