"""K volumes, of which every particle shows one: classes."""

from collections.abc import Sequence

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints

from cryoprob.checks import require
from cryoprob.fourier.bands import Band
from cryoprob.models.volumes.base import Volume
from cryoprob.types import Coefficients, Maps, Rotations, Sizes

__all__ = ["Mixture", "Stacked"]


class Stacked(TorchDistribution):
    """Independent laws of K like values, [K, *event].

    Parameters
    ----------
    laws
        Each of batch shape ().
    shape
        Batch shape.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}

    def __init__(self, laws: Sequence[TorchDistribution], shape: Sizes = ()) -> None:
        self.laws = list(laws)
        self.has_rsample = all(law.has_rsample for law in self.laws)
        event = torch.Size([len(self.laws), *self.laws[0].event_shape])
        super().__init__(torch.Size(shape), event, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        """Of one law, K times."""
        return constraints.independent(self.laws[0].support, 1)

    def expand(self, batch_shape: Sizes, _instance: "Stacked | None" = None) -> "Stacked":
        """The same law over a larger batch."""
        return Stacked(self.laws, batch_shape)

    def rsample(self, sample_shape: Sizes = torch.Size()) -> Tensor:
        """Draws, [*sample, *batch, K, *event]."""
        shape = torch.Size(sample_shape) + self.batch_shape
        return torch.stack([law.rsample(shape) for law in self.laws], len(shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Sum of the log densities, [*batch]."""
        parts = value.unbind(value.dim() - len(self.event_shape))
        each = [law.log_prob(part) for law, part in zip(self.laws, parts, strict=True)]
        found = torch.stack(each).sum(0)
        return found.expand(torch.broadcast_shapes(found.shape, self.batch_shape))


class Mixture(Volume):
    """One of K volumes; the conformation is its number.

    Coefficients are those of the members, [K, *]. Scheres et al. 2007, Nat. Methods 4, 27.

    Parameters
    ----------
    members
        Volumes of like coefficients and band that take no conformation.

    Raises
    ------
    InputError
        If there are fewer than one, or one takes a conformation.
    """

    def __init__(self, members: Sequence[Volume]) -> None:
        super().__init__()
        alike = len({(part.band.box, part.band.radius) for part in members}) == 1
        plain = all(part.conformation_size == 0 for part in members)
        wanted = "one or more volumes of one band that take no conformation"
        got = ", ".join(type(part).__name__ for part in members) or "none"
        require(alike and plain, "members of the mixture", expected=wanted, got=got)
        self.members, self.box = nn.ModuleList(members), members[0].band.box
        self.linear_in_coefficients = all(part.linear_in_coefficients for part in members)
        self.conformation_size = len(members)

    @property
    def volumes(self) -> list[Volume]:
        """The members."""
        return [part for part in self.members if isinstance(part, Volume)]

    @property
    def unit(self) -> float:
        """That of the first member."""
        return self.volumes[0].unit

    def prior(self) -> Stacked:
        """The members' own, independent."""
        return Stacked([part.prior() for part in self.volumes])

    def start(self, generator: torch.Generator) -> Tensor:
        """Unlike starts of all members."""
        return torch.stack([part.start(generator) for part in self.volumes])

    def set_band(self, radius: int) -> None:
        """That of all members."""
        for part in self.volumes:
            part.set_band(radius)

    @property
    def band(self) -> Band:  # type: ignore[override]
        """That of the members."""
        return self.volumes[0].band

    def slices(
        self, coefficients: Tensor, rotation: Rotations, conformation: Tensor | None = None
    ) -> Coefficients:
        """Slices [*, m] of the maps that the states [*] name; the batches are broadcast.

        Of states that are enumerated along a dimension of their own each map is sliced once.
        """
        assert conformation is not None
        pairs = list(zip(self.volumes, coefficients, strict=True))
        shape = rotation.shape[:-2]
        if torch.broadcast_shapes(shape, conformation.shape) == shape:  # a state for each rotation
            state = conformation.expand(shape)
            parts = [part.slices(own, rotation[state == k]) for k, (part, own) in enumerate(pairs)]
            found = parts[0].new_zeros(*shape, parts[0].shape[-1])
            for k, part in enumerate(parts):
                found = found.index_put(((state == k),), part)
            return found
        every = torch.stack([part.slices(own, rotation) for part, own in pairs])
        spare = max(conformation.dim() - len(shape), 0)
        every = every[(slice(None), *(None,) * spare)]
        states = torch.arange(len(pairs), device=conformation.device)
        chosen = conformation == states.reshape(-1, *(1,) * conformation.dim())
        return (every * chosen[..., None]).sum(0)

    def density(self, coefficients: Tensor, conformation: Tensor | None = None) -> Maps:
        """The maps of the states [*], [*, D, D, D]."""
        assert conformation is not None
        parts = zip(self.volumes, coefficients, strict=True)
        return torch.stack([part.density(own) for part, own in parts])[conformation]
