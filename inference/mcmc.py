"""Hamiltonian Monte Carlo of a linear volume with the poses summed out exactly.

A second gold standard beside :mod:`cryoprob.inference.gibbs`, which shares little with it: the
poses are never drawn, the map moves along gradients. For small problems: boxes up to 16, some
hundred images.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from pyro.infer import MCMC, NUTS
from torch import Tensor

from cryoprob.checks import require
from cryoprob.fourier.shells import spread
from cryoprob.fourier.transforms import fft3
from cryoprob.inference.chains import Chains
from cryoprob.inference.dense import DenseGrid
from cryoprob.inference.filtered import filter_images
from cryoprob.inference.statistics import reals
from cryoprob.models.image_likelihood import shift_phase
from cryoprob.models.particle_model import ParticleModel
from cryoprob.particles import ParticleStack
from cryoprob.types import Maps, Rotations, Shifts

__all__ = ["VolumePosterior", "sample_nuts"]


class VolumePosterior:
    """``log p(images | volume) + log p(volume)`` of a map, with its gradient.

    Parameters
    ----------
    model
        Pose priors on grids; a linear volume.
    stack
        The images.
    poses
        Rotations [N, 3, 3] and shifts [N, 2] where they are known; the grids are not used then.
    block_bytes
        Memory of one block of scores.
    """

    def __init__(
        self,
        model: ParticleModel,
        stack: ParticleStack,
        *,
        poses: tuple[Rotations, Shifts] | None = None,
        block_bytes: int = 2**23,
    ) -> None:
        self.model, self.block_bytes = model, block_bytes
        with torch.no_grad():
            self._images = filter_images(model, stack, torch.arange(len(stack)))
            tau2, box = model.linear_volume.tau2, model.band.box
            self._scale = spread(tau2, box).sqrt()
            self._gain = self._summed(box) if poses is None else self._given(*poses)

    def log_joint(self, volume: Maps) -> Tensor:
        """Nats, constants included, [] float64; differentiable in the map [D, D, D]."""
        evidence: Tensor = self._images.noise_only.sum() + self._gain(volume)
        return evidence + self.model.linear_volume.prior().log_prob(volume).double()

    def volume(self, white: Tensor) -> Maps:
        """The map of coordinates [D, D, D] that are independent N(0, 1) under the prior.

        They are Hartley coefficients over the prior's deviation, so that a diagonal metric can
        follow how well each frequency is known.
        """
        return _hartley(self._scale * white)

    def white(self, volume: Maps) -> Tensor:
        """The coordinates of a map, the inverse of :meth:`volume`."""
        return _hartley(volume) / self._scale

    def potential(self, values: dict[str, Tensor]) -> Tensor:
        """Minus the log density of ``values["white"]``, up to a constant: what NUTS asks for."""
        white = values["white"]
        return white.square().sum() / 2 - self._gain(self.volume(white)).to(white)

    def _summed(self, box: int) -> Callable[[Maps], Tensor]:
        """Log evidence over noise, poses summed out, as a function of the map.

        Its gradient is the posterior mean of the log density's (Fisher's identity): two matrix
        products more, and no score of a pose is kept.
        """
        model, images = self.model, self._images
        grid = DenseGrid.of(model, self._scale.new_zeros(box, box, box))

        def gain(volume: Maps) -> Tensor:
            slices = model.volume.slices(volume, grid.rotations)
            fixed = slices.detach()
            here = replace(grid, slices=fixed, energy=fixed.abs().square() / 2)
            numerator, weight = torch.zeros_like(fixed), torch.zeros_like(here.energy)
            total = images.noise_only.new_zeros(())
            with torch.no_grad():
                for _, posterior in here.posteriors(images, self.block_bytes):
                    posterior.accumulate(reals(numerator), weight)
                    total += posterior.log_sum.sum()
                slope = reals(numerator - weight * fixed)
            tangent = (slope * reals(slices)).sum()
            return total + tangent - tangent.detach()

        return gain

    def _given(self, rotation: Rotations, shift: Shifts) -> Callable[[Maps], Tensor]:
        """Log density over noise at given poses, as a function of the map."""
        model, images = self.model, self._images
        rotation, shift = rotation.to(self._scale), shift.to(self._scale)
        phase = shift_phase(model.band, shift, model.pixel_size)
        numerator = reals(images.image * phase.conj())

        def gain(volume: Maps) -> Tensor:
            slices = model.volume.slices(volume, rotation)
            energy = (images.transfer * slices.abs().square()).sum()
            return ((numerator * reals(slices)).sum() - energy / 2).double()

        return gain


def sample_nuts(
    target: VolumePosterior, starts: Maps, *, warmup: int, draws: int, seed: int
) -> Chains:
    """Chains of NUTS from maps ``starts`` [C, D, D, D], one after the other.

    Step size and a diagonal metric are adapted in ``warmup`` steps. Starts should be
    overdispersed: draws of the volume's prior are. Hoffman and Gelman 2014, JMLR 15, 1593.

    Raises
    ------
    InputError
        If there are no draws.
    """
    require(draws > 0, "draws", expected="one or more", got=str(draws))
    volumes = torch.stack(
        [
            _one_chain(target, start, warmup, draws, seed * 1000 + number)
            for number, start in enumerate(starts)
        ]
    )
    with torch.no_grad():
        scores = [target.log_joint(volume) for volume in volumes.flatten(0, 1)]
    return Chains(volumes, torch.stack(scores).reshape(volumes.shape[:2]))


def _one_chain(target: VolumePosterior, start: Maps, warmup: int, draws: int, seed: int) -> Maps:
    """Draws [S, D, D, D]; torch's random state is left as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        kernel = NUTS(potential_fn=target.potential)
        first = {"white": target.white(start)}
        chain = MCMC(kernel, draws, warmup, initial_params=first, disable_progbar=True)
        chain.run()
        white = chain.get_samples()["white"]
    return torch.stack([target.volume(one) for one in white])


def _hartley(values: Tensor) -> Tensor:
    """Orthonormal Hartley transform [D, D, D], its own inverse."""
    found = fft3(values)
    return found.real - found.imag
