"""Exact Gibbs sampling of a linear volume, the poses and the noise: the gold standard.

Given the poses the map is Gaussian and drawn by perturb and solve; given the map each image's pose
is drawn from its posterior over the whole grid; given both, noise variances are inverse gamma.
Nothing is approximated but the solver's tolerance, so that every family of inference can be held
against the draws. For small problems: boxes up to 16, some hundred images.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from cryoprob.checks import require
from cryoprob.fourier.bands import full_band
from cryoprob.fourier.normal import Insertion
from cryoprob.inference.chains import Chains
from cryoprob.inference.dense import DenseGrid
from cryoprob.inference.filtered import Filtered, filter_images
from cryoprob.inference.m_step import posterior_sample
from cryoprob.inference.statistics import reals
from cryoprob.models.image_likelihood import shift_phase
from cryoprob.models.particle_model import ParticleModel
from cryoprob.particles import ParticleStack
from cryoprob.types import Maps, Rotations, Shifts

__all__ = ["Gibbs", "GibbsState", "sample_gibbs"]


@dataclass(frozen=True, eq=False)
class GibbsState:
    """One draw.

    Attributes
    ----------
    volume
        [D, D, D].
    rotation, shift
        A pose of every image, [N, 3, 3] and [N, 2] (Angstrom).
    sigma2
        Noise spectra, [G, S].
    log_joint
        ``log p(images | volume, sigma2) + log p(volume)``, nats, [] float64.
    log_likelihood
        The images' part of it, one by one, [N] float64; empty where it was not asked for.
    """

    volume: Maps
    rotation: Rotations
    shift: Shifts
    sigma2: Tensor
    log_joint: Tensor
    log_likelihood: Tensor = field(default_factory=lambda: torch.zeros(0))


class Gibbs:
    """The sampler: :meth:`init` a state, then :meth:`step`.

    Parameters
    ----------
    model
        Pose priors on grids; a linear volume. With ``noise_prior`` its noise spectra are
        overwritten with the state's.
    stack
        The images.
    poses
        Rotations [N, 3, 3] and shifts [N, 2] where they are known; the grids are not used then.
    noise_prior
        Shape and rate of an inverse-gamma prior of every noise variance; None leaves the noise as
        it is. The posterior's shape grows by half the count of a shell's numbers, its rate by half
        the residual's power.
    block_bytes
        Memory of one block of scores.
    tolerance
        Of the conjugate gradients, as in :func:`~cryoprob.inference.m_step.solve_volume`. In units
        of the posterior's width, all voxels together, a draw is off by this times the root of
        twice the nats that the map explains.
    """

    def __init__(
        self,
        model: ParticleModel,
        stack: ParticleStack,
        *,
        poses: tuple[Rotations, Shifts] | None = None,
        noise_prior: tuple[float, float] | None = None,
        block_bytes: int = 2**23,
        tolerance: float = 1e-4,
    ) -> None:
        self.model, self.stack, self.poses = model, stack, poses
        self.noise_prior, self.block_bytes = noise_prior, block_bytes
        self.tolerance = tolerance
        self._images = self._filtered()

    def init(self, volume: Maps, generator: torch.Generator) -> GibbsState:
        """Poses drawn at a map [D, D, D], at the model's own noise."""
        return self._posed(volume, generator)

    def step(self, state: GibbsState, generator: torch.Generator) -> GibbsState:
        """Draw the volume, then the noise, then the poses; ``generator`` is on the CPU."""
        self._set_noise(state.sigma2)
        volume = self.draw_volume(state, generator)
        if self.noise_prior is not None:
            self._set_noise(self._draw_noise(volume, state, generator))
        return self._posed(volume, generator)

    def draw_volume(self, state: GibbsState, generator: torch.Generator) -> Maps:
        """A map from its Gaussian posterior given the state's poses, [D, D, D].

        Noise of every image's own kind, inserted with the image, has the data's precision.
        """
        images, linear = self._images, self.model.linear_volume
        white = torch.randn(
            *images.transfer.shape, 2, generator=generator, dtype=torch.float64
        ).to(images.transfer)
        noise = images.transfer.sqrt() * torch.view_as_complex(white)
        insertion = Insertion(linear.slicer)
        insertion.add(self._turned_back(state.shift) + noise, images.transfer, state.rotation)
        equations = insertion.equations()
        right, start = equations.right_side(), state.volume
        return posterior_sample(equations, linear.tau2, right, start, generator, self.tolerance)

    def _turned_back(self, shift: Shifts) -> Tensor:
        """Filtered images, moved back to the center, [N, m]."""
        phase = shift_phase(self.model.band, shift, self.model.pixel_size)
        return (self._images.image * phase.conj()).resolve_conj()

    def _posed(self, volume: Maps, generator: torch.Generator) -> GibbsState:
        """Poses given the map."""
        if self.poses is None:
            rotation, shift, evidence = self._search(volume, generator)
        else:
            rotation, shift = (pose.to(volume) for pose in self.poses)
            evidence = self._images.noise_only + self._gain(volume, rotation, shift)
        prior = self.model.linear_volume.prior().log_prob(volume).double()
        sigma2 = self.model.noise.sigma2.clone()
        return GibbsState(volume, rotation, shift, sigma2, evidence.sum() + prior, evidence)

    def _search(
        self, volume: Maps, generator: torch.Generator
    ) -> tuple[Rotations, Shifts, Tensor]:
        """A pose of every image from its exact posterior, and the log evidence [N]."""
        grid, picked, evidence = DenseGrid.of(self.model, volume), [], []
        for _, posterior in grid.posteriors(self._images, self.block_bytes):
            weights = posterior.weights.flatten(1).cpu()
            picked.append(torch.multinomial(weights, 1, generator=generator)[:, 0])
            evidence.append(posterior.log_evidence)
        cell = torch.cat(picked).to(volume.device)
        turn, move = cell % len(grid.rotations), cell // len(grid.rotations)
        return grid.rotations[turn], grid.shifts[move], torch.cat(evidence)

    def _gain(self, volume: Maps, rotation: Rotations, shift: Shifts) -> Tensor:
        """Log density of every image at its pose over that of noise alone, [N] float64."""
        slices = self.model.volume.slices(volume, rotation)
        cross = torch.linalg.vecdot(reals(self._turned_back(shift)), reals(slices))
        energy = torch.linalg.vecdot(self._images.transfer, slices.abs().square())
        gain: Tensor = cross - energy / 2
        return gain.double()

    def _draw_noise(self, volume: Maps, state: GibbsState, generator: torch.Generator) -> Tensor:
        """Noise variances given map and poses, [G, S]."""
        assert self.noise_prior is not None
        residual, count = self._residual(volume, state)
        shape = self.noise_prior[0] + count / 2
        rate = self.noise_prior[1] + residual / 2
        seed = int(torch.randint(2**62, (), generator=generator))
        drawn = np.random.default_rng(seed).standard_gamma(shape.cpu().numpy())
        return rate.cpu() / torch.from_numpy(drawn)

    def _residual(self, volume: Maps, state: GibbsState) -> tuple[Tensor, Tensor]:
        """Power of images less their means per group and shell, and count of numbers, [G, S]."""
        images, band = self._images, self.model.band
        slices = self.model.volume.slices(volume, state.rotation)
        energy = images.transfer * slices.abs().square()
        cross = (reals(self._turned_back(state.shift)) * reals(slices)).unflatten(-1, (-1, 2))
        change = (energy - 2 * cross.sum(-1)).double()
        power = images.power.clone()
        shell = band.shell.to(power.device)
        power.index_add_(1, shell, change * state.sigma2.double()[images.group][:, shell])
        residual = torch.zeros_like(state.sigma2, dtype=torch.float64)
        residual.index_add_(0, images.group, power)
        members = torch.bincount(images.group, minlength=len(residual)).to(residual)
        numbers = full_band(band.box).numbers_per_shell().to(residual)
        return residual, members[:, None] * numbers

    def _set_noise(self, sigma2: Tensor) -> None:
        if self.noise_prior is not None:
            self.model.noise.sigma2.copy_(sigma2)
            self._images = self._filtered()

    def _filtered(self) -> Filtered:
        return filter_images(self.model, self.stack, torch.arange(len(self.stack)))


def sample_gibbs(
    sampler: Gibbs,
    starts: Maps,
    *,
    warmup: int,
    draws: int,
    seed: int,
) -> Chains:
    """Chains from maps ``starts`` [C, D, D, D]; the first ``warmup`` steps of each are left out.

    Starts should be overdispersed: draws of the volume's prior are.

    Raises
    ------
    InputError
        If there are no draws.
    """
    require(draws > 0, "draws", expected="one or more", got=str(draws))
    chains = []
    sigma2 = sampler.model.noise.sigma2.clone()
    for number, start in enumerate(starts):
        generator = torch.Generator().manual_seed(seed * 1000 + number)
        sampler._set_noise(sigma2)
        state, states = sampler.init(start, generator), []
        for _ in range(warmup + draws):
            state = sampler.step(state, generator)
            states.append(state)
        chains.append(states[warmup:])
    sampler._set_noise(sigma2)
    names = ("volume", "log_joint", "rotation", "shift", "sigma2", "log_likelihood")
    stacked = {
        name: torch.stack([torch.stack([getattr(s, name) for s in one]) for one in chains])
        for name in names
    }
    return Chains(**stacked)
