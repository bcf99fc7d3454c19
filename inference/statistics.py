"""What the E-step hands to the M-step: sums over images.

And each image's posterior in a few numbers.
"""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from cryoprob.fourier.bands import Band
from cryoprob.fourier.normal import Insertion
from cryoprob.inference.filtered import Filtered

__all__ = ["PosteriorSummary", "Statistics", "reals"]


def reals(coefficients: Tensor) -> Tensor:
    """Complex [*, m] as reals [*, 2m], without a copy where possible."""
    return torch.view_as_real(coefficients.resolve_conj()).flatten(-2)


@dataclass(eq=False)
class PosteriorSummary:
    """The posterior of each of N images.

    Attributes
    ----------
    bound
        Nats over all pixels, [N] (float64): log p(image | volume) where the poses are summed out
        or given; what else it is says the guide's ``kind``.
    rotation, shift
        Mean around the posterior mode [N, 3, 3], and mean shift (Angstrom) [N, 2].
    probability
        Largest posterior mass of one rotation cell, [N]; NaN where cells are not counted.
    entropy
        Of the pose posterior, nats, [N]; NaN where q of the pose is a Dirac, which has none.
    cross, energy
        Posterior means of <filtered image, pose> and of the pose's whitened energy, [N]; NaN
        where contrast or defocus is summed out.
    """

    bound: Tensor
    rotation: Tensor
    shift: Tensor
    probability: Tensor
    entropy: Tensor
    cross: Tensor
    energy: Tensor

    @classmethod
    def empty(cls, count: int, dtype: torch.dtype, device: torch.device) -> "PosteriorSummary":
        """Room for ``count`` images."""
        evidence = torch.full((count,), -torch.inf, dtype=torch.float64, device=device)
        rotation = torch.zeros(count, 3, 3, dtype=dtype, device=device)
        shift = rotation.new_zeros(count, 2)
        return cls(evidence, rotation, shift, *(shift.new_zeros(count) for _ in range(4)))

    def take(self, rows: Tensor) -> "PosteriorSummary":
        """The summary of some images."""
        return PosteriorSummary(*(getattr(self, item.name)[rows] for item in fields(self)))

    def cpu(self) -> "PosteriorSummary":
        """The summary in the CPU's memory."""
        return PosteriorSummary(*(getattr(self, item.name).cpu() for item in fields(self)))

    def without_widths(self, *, entropy: bool = False) -> "PosteriorSummary":
        """The summary without what it cannot know of the widths; ``entropy`` keeps that."""
        unknown = torch.full_like(self.probability, torch.nan)
        kept = self.entropy if entropy else unknown
        return replace(self, probability=unknown, entropy=kept)

    def widths(self) -> dict[str, Tensor]:
        """``probability`` and ``entropy``, [N] each, as far as they are known."""
        found = {"probability": self.probability, "entropy": self.entropy}
        return {name: part for name, part in found.items() if not bool(part.isnan().all())}

    def put(self, rows: Tensor, part: "PosteriorSummary") -> None:
        """Write the summary of some images in place."""
        for item in fields(self):
            target = getattr(self, item.name)
            target[rows] = getattr(part, item.name).to(target)


@dataclass(eq=False)
class Statistics:
    """Sufficient statistics of the M-step.

    Attributes
    ----------
    insertion
        Numerators and weights of the volume's normal equations.
    summary
        Posterior of every image.
    residual
        Expected residual power per optics group and shell, [G, S] (float64).
    counts
        Images per group, [G] (float64).
    whitened
        Power of every image over its noise, all pixels, [N] (float64).
    shift_power
        Sum over images of the posterior mean of |shift|^2, Angstrom^2, [] (float64).
    power
        Sum of squares of the images per optics group and shell, [G, S] (float64).
    """

    insertion: Insertion
    summary: PosteriorSummary
    residual: Tensor
    counts: Tensor
    whitened: Tensor
    shift_power: Tensor
    power: Tensor

    def add_power(self, images: Filtered, sigma2: Tensor) -> None:
        """Count images, with their power per shell, under noise spectra [G, S]."""
        self.residual.index_add_(0, images.group, images.power)
        self.power.index_add_(0, images.group, images.power)
        self.counts.index_add_(0, images.group, torch.ones_like(images.power[:, 0]))
        self.whitened[images.index] = (images.power / sigma2[images.group].double()).sum(1)

    def add_slices(
        self,
        group: int,
        numerator: Tensor,
        weight: Tensor,
        slices: Tensor,
        energy: Tensor,
        rotations: Tensor,
        band: Band,
        sigma2: Tensor,
    ) -> None:
        """Insert posterior sums of one optics group: numerators and weights [Q, M].

        Of slices [Q, m], of which ``energy`` [Q, m] is half the mean square.
        """
        self.insertion.add(numerator, weight, rotations)
        cross = (reals(numerator) * reals(slices)).unflatten(-1, (-1, 2)).sum((0, -1))
        explained = (weight * energy).sum(0)
        shell = band.shell.to(energy.device)
        change = 2 * (explained - cross).double() * sigma2[shell].double()
        self.residual[group].index_add_(0, shell, change)
