"""Every family of inference against exact draws: the map's means, widths and coverage, and poses.

    python tests/benchmarks/gold_standard.py [--images N] [--snr S] [--box D] [--order N] [--seed N]
                                             [--chains C] [--warmup W] [--draws S]
                                             [--families a,b,...] [--gaussian a,b,...]

A small problem whose model is true: blobs in a box of 12, projected at poses of the grid of 15
degrees and of 13 shifts, CTF, white noise of variance 1, the prior power of every shell that of the
map. Gibbs sampling (``cryoprob.inference.gibbs``) draws map and poses from their exact posterior.
Every family starts from the truth low-passed to 30 A, with noise, prior and grid held and no mask.

Prints one row per family and treatment of the map. ``bias`` is the root mean square over voxels
of its map less the mean of the draws, in standard deviations of the draws; ``sd`` the median over
voxels of the deviation that it reports over the draws'; ``draws`` and ``truth`` how much of these
its 90 % intervals hold; ``poses`` the total variation between its q of a pose and the posterior's
(the mean over the draws of maps), over all cells, mean of some images; then nats per image, steps
and seconds. A point is given the deviation that fits report (exact draws at its weights), a
Gaussian its own. The row ``gibbs`` holds half of the chains against the other half.

A turn or shift of the map as a whole, which the poses take up, is no error: its six directions are
taken out of maps and draws (``turn`` says how far the map was turned, degrees).
"""

import argparse
import time
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from cryoprob.fourier.shells import low_pass, shell_index_3d, shell_mean
from cryoprob.fourier.transforms import fft3, ifft3
from cryoprob.inference.cells import masses_of
from cryoprob.inference.chains import Chains, score
from cryoprob.inference.config import FAMILIES, HYBRIDS
from cryoprob.inference.dense import DenseGrid
from cryoprob.inference.e_step import near_cells
from cryoprob.inference.families import Recipe, family
from cryoprob.inference.filtered import Filtered, filter_images
from cryoprob.inference.fit import fit
from cryoprob.inference.gibbs import Gibbs, sample_gibbs
from cryoprob.inference.grids import on_grid, pose_grids
from cryoprob.inference.guide import Guide
from cryoprob.inference.half import Half
from cryoprob.inference.learn import Learner
from cryoprob.inference.levels import Level
from cryoprob.inference.result import FitResult
from cryoprob.inference.schedule import Schedule
from cryoprob.inference.solvent import Solvent
from cryoprob.inference.treatments.base import Near
from cryoprob.inference.treatments.exact import Exact
from cryoprob.models.noises.radial_noise import RadialNoise
from cryoprob.models.particle_model import ParticleModel
from cryoprob.models.poses.gaussian_shift import GaussianShift
from cryoprob.models.poses.uniform_rotation import UniformRotation
from cryoprob.models.simulate import Microscope, draw_images, draw_optics, draw_poses
from cryoprob.models.volumes.fourier_voxels import FourierVoxels
from cryoprob.particles import ParticleStack
from cryoprob.phantoms import blobs

PIXEL_A, LOW_PASS_A, SHIFT_PX = 6.0, 30.0, 0.5
LOOKED_AT, MAPS = 24, 40
"""Images whose poses are compared, and draws of the map over which their posterior is a mean."""

HELD = dict.fromkeys(("noise", "shift_sigma", "tau2", "turn"), False)
TRAINING = {"warm_steps": 400, "learn_steps": 40, "batch": 128, "max_iterations": 12}
NAMES = FAMILIES + HYBRIDS
GAUSSIAN = ("exact-em", "modal-em", "svi", "amortized-vi")


class Still(Learner):
    """A learner that leaves the model's noise as it is."""

    def __init__(self, learner: Learner) -> None:
        self.learner = learner

    def learn(self, half: Half, stack: ParticleStack, iteration: int, order: int) -> None:
        """As it does."""
        self.learner.learn(half, stack, iteration, order)


class Task:
    """The images, their model and the truth."""

    def __init__(self, images: int, snr: float, box: int, order: int, seed: int) -> None:
        self.seed = seed
        sizes = {"shift_extent": 1.0, "shift_step": 0.5, "coarse_order": order, "max_order": order}
        self.plan = Schedule(mass=1.0, max_iterations=40, gain=0.002, **sizes, **HELD)
        generator = torch.Generator().manual_seed(seed)
        inside = shell_index_3d(box) < box // 2
        shape = ifft3(fft3(blobs(box, PIXEL_A, generator)) * inside).real
        optics = draw_optics(images, generator, Microscope())
        free = self.model(torch.ones(box // 2 + 2))
        grids = pose_grids(free, self.plan, order, seed=0)
        poses, variance = draw_poses(on_grid(free, *grids), shape, optics, images, seed)
        self.truth = (snr / float(variance.mean())) ** 0.5 * shape
        drawn = draw_images(free, self.truth, optics, poses, seed + 1)
        self.stack = ParticleStack.from_arrays(torch.cat(list(drawn)), PIXEL_A, optics)
        power = shell_mean(fft3(self.truth).abs() ** 2)
        self.tau2 = power.clamp(min=1e-3 * float(power[: box // 2].min()))
        self.gridded = on_grid(self.model(self.tau2), *grids)

    @staticmethod
    def model(tau2: Tensor) -> ParticleModel:
        """Of the images, poses on the continuum."""
        box = 2 * (len(tau2) - 2)
        noise = RadialNoise(torch.ones(1, len(tau2)))
        poses = UniformRotation(), GaussianShift(SHIFT_PX * PIXEL_A)
        return ParticleModel(FourierVoxels(box, tau2), *poses, noise, PIXEL_A)

    def sample(self, chains: int, warmup: int, draws: int) -> Chains:
        """Gibbs sampling from around the truth, a draw of the prior away from it."""
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            away = self.gridded.volume.prior().sample((chains,))
        sampler = Gibbs(self.gridded, self.stack, tolerance=1e-3, block_bytes=2**25)
        starts = self.truth + away / 2
        return sample_gibbs(sampler, starts, warmup=warmup, draws=draws, seed=self.seed)

    def fit(self, name: str, volume: str, **settings: int) -> FitResult:
        """A family's fit from the low-passed truth, with what it does not know held."""
        row, model = family(name), self.model(self.tau2)
        training = TRAINING if name.startswith("amortized") else {}
        plan = row.settle(replace(self.plan, volume=volume, **(training | settings)))
        start = low_pass(self.truth, PIXEL_A, LOW_PASS_A)
        recipe = Recipe(model, start, plan, len(self.stack), self.seed)
        learner = Still(row.learner(recipe)) if row.learner else None
        return fit(
            model,
            row.guide(recipe),
            self.stack,
            seed=self.seed,
            schedule=plan,
            resolution_A=LOW_PASS_A,
            solvent=Solvent("none"),
            learner=learner,
        )

    @property
    def looked_at(self) -> Tensor:
        """Images whose poses are compared."""
        count = len(self.stack)
        return torch.linspace(0, count - 1, min(count, LOOKED_AT)).long()

    def images(self) -> Filtered:
        """The images looked at, filtered."""
        return filter_images(self.gridded, self.stack, self.looked_at)

    def cells(self, guide: Guide) -> Tensor:
        """A guide's q over the cells of the grid, [n, T, Q]."""
        with torch.no_grad():
            images, model = self.images(), self.gridded
            if isinstance(guide.rotation, Exact | Near):
                posterior = DenseGrid.of(model, guide.volume.maps).posterior(images)
                logits = posterior.logits.double()
                if isinstance(guide.rotation, Near):
                    logits = logits.masked_fill(~self._reached(guide, images), -torch.inf)
                return logits.flatten(1).softmax(1).view_as(logits)
            guide.forget()
            batch = self.stack.batch(self.looked_at, guide.band(model), torch.float32)
            masses = masses_of(guide, batch, Level.of(model))
            return (masses.shift[:, :, None] + masses.rotation[:, None]).exp()

    def _reached(self, guide: Guide, images: Filtered) -> Tensor:
        """Cells near what an encoder proposes, [n, T, Q]."""
        model, count = self.gridded, len(images)
        found = near_cells(model, guide.volume.maps, guide, self.stack, images)
        turns = torch.zeros(count, len(model.rotation.matrices()), dtype=torch.bool)
        moves = torch.zeros(count, len(model.shift.points()) + 1, dtype=torch.bool)
        turns[found.row, found.cell] = True
        last = moves.shape[1] - 1  # of padding
        moves.scatter_(1, torch.where(found.shift < 0, last, found.shift), True)
        return moves[:, :-1, None] & turns[:, None]


def directions(volume: Tensor) -> Tensor:
    """Changes of a map by turns about x, y and z (per radian) and shifts (per voxel), [6, D^3]."""
    box = volume.shape[-1]
    frequency = 2j * torch.pi * torch.fft.fftfreq(box).to(volume)
    spectrum = torch.fft.fftn(volume)
    waves = frequency, frequency[:, None], frequency[:, None, None]
    slopes = [torch.fft.ifftn(wave * spectrum).real for wave in waves]
    place = torch.arange(box).to(volume) - box // 2
    z, y, x = torch.meshgrid(place, place, place, indexing="ij")
    at = x, y, z
    turns = [
        at[(a + 2) % 3] * slopes[(a + 1) % 3] - at[(a + 1) % 3] * slopes[(a + 2) % 3]
        for a in range(3)
    ]
    return torch.stack([*turns, *(-slope for slope in slopes)]).flatten(1)


@dataclass(frozen=True, eq=False)
class Standard:
    """Draws of the exact posterior, and how families stand beside them."""

    task: Task
    chains: Chains

    @cached_property
    def mean(self) -> Tensor:
        """Of the draws, [D, D, D]."""
        return self.chains.volume.mean((0, 1))

    @cached_property
    def draws(self) -> Tensor:
        """Moved onto their mean, [C, S, D, D, D]."""
        return self.moved(self.chains.volume)

    def away(self, maps: Tensor) -> Tensor:
        """Turns (radians) and shifts (voxels) from the mean, to first order, [*, 6]."""
        basis, difference = directions(self.mean), (maps - self.mean).flatten(-3)
        return torch.linalg.lstsq(basis.T, difference.reshape(-1, basis.shape[1]).T).solution.T

    def moved(self, maps: Tensor) -> Tensor:
        """Maps without what turns or shifts them as a whole."""
        return maps - (self.away(maps) @ directions(self.mean)).view_as(maps)

    def turn_deg(self, maps: Tensor) -> float:
        """Root mean square angle from the mean."""
        return float(torch.rad2deg(self.away(maps)[:, :3].square().sum(1).mean().sqrt()))

    @cached_property
    def cells(self) -> Tensor:
        """Posterior of the poses, maps drawn: the mean of the conditional ones, [n, T, Q]."""
        images, maps = self.task.images(), self.chains.volume.flatten(0, 1)
        maps, total = maps[:: max(1, len(maps) // MAPS)], torch.zeros(())
        with torch.no_grad():
            for one in maps:
                posterior = DenseGrid.of(self.task.gridded, one).posterior(images)
                total = total + posterior.weights.double()
        return total / len(maps)

    def numbers(self, mean: Tensor, std: Tensor, draws: Tensor | None = None) -> dict[str, float]:
        """Bias, ratio of deviations, and coverage of the draws and of the truth."""
        mean, truth = self.moved(mean), self.moved(self.task.truth)
        found = score(self.draws if draws is None else draws, mean, std).summary()
        inside = (truth - mean).abs() <= 1.6449 * std
        return {**found, "truth": float(inside.float().mean())}

    def family(self, result: FitResult) -> dict[str, float]:
        """The same of a fit, and the total variation of its poses."""
        guide = result.fitted.guide
        q = guide.volume
        std = q.law().variance.sqrt().detach() if q.has_density else result.volume_std
        gap = (self.task.cells(guide) - self.cells).abs().sum((1, 2)) / 2
        numbers = self.numbers(result.volume, std)
        return {**numbers, "poses": float(gap.mean()), "turn": self.turn_deg(result.volume[None])}

    def itself(self) -> dict[str, float]:
        """The later chains by the earlier ones."""
        half = len(self.draws) // 2
        first, second = self.draws[:half].flatten(0, 1), self.draws[half:]
        return self.numbers(first.mean(0), first.std(0), second)


def line(name: str, found: dict[str, float], rest: str) -> str:
    """A row of Markdown."""
    words = {"bias": ".2f", "ratio": ".2f", "coverage": ".0%", "truth": ".0%", "poses": ".2f"}
    words["turn"] = ".1f"
    cells = [format(found[key], form) if key in found else "" for key, form in words.items()]
    return f"| {name} | " + " | ".join(cells) + f" | {rest} |"


def compare(standard: Standard, names: list[tuple[str, str]]) -> None:
    """Print the table."""
    print("| family, map | bias | sd | draws | truth | poses | turn | nats | steps | s |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    print(line("gibbs", standard.itself(), " | | "), flush=True)
    for name, volume in names:
        began = time.time()
        result = standard.task.fit(name, volume)
        bound, steps = float(result.posterior.bound.mean()), len(result.history)
        rest = f"{bound:.2f} | {steps} | {time.time() - began:.0f}"
        print(line(f"{name}, {volume}", standard.family(result), rest), flush=True)


def main() -> None:
    """Sample, fit, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=240)
    parser.add_argument("--snr", type=float, default=1.5)
    parser.add_argument("--box", type=int, default=12)
    parser.add_argument("--order", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--chains", type=int, default=4)
    parser.add_argument("--warmup", type=int, default=40)
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--families", default=",".join(NAMES))
    parser.add_argument("--gaussian", default=",".join(GAUSSIAN))
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    task = Task(given.images, given.snr, given.box, given.order, given.seed)
    began = time.time()
    chains = task.sample(given.chains, given.warmup, given.draws)
    standard, found = Standard(task, chains), chains.diagnose()
    entropy = -(standard.cells * standard.cells.clamp(min=1e-300).log()).sum((1, 2))
    print(
        f"Gibbs: {given.chains} chains of {given.warmup} + {given.draws} in"
        f" {time.time() - began:.0f} s; R-hat at most {found.worst_rhat:.3f}, effective draws at"
        f" least {found.least_ess:.0f}; poses of {float(entropy.mean()):.1f} nats; maps turned by"
        f" {standard.turn_deg(chains.volume):.2f} degrees\n",
        flush=True,
    )
    chosen = [
        (name, volume)
        for name in given.families.split(",")
        for volume in ("point", "gaussian")
        if volume == "point" or name in given.gaussian.split(",")
    ]
    compare(standard, chosen)


if __name__ == "__main__":
    main()
