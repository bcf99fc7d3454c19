"""Terms of a model beside its sites: log potentials of structures and maps, as Pyro's factors."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from cryoprob.checks import InputError, require
from cryoprob.models.volumes.base import Volume
from cryoprob.models.volumes.batches import each_map
from cryoprob.models.volumes.gaussian_mixture import GaussianMixture
from cryoprob.models.volumes.structure_terms import (
    ALPHA_CARBON_BOND,
    bond_term,
    deviation_term,
    positivity_term,
)

__all__ = ["Bonds", "Deviation", "Positivity", "Term"]


class Term(nn.Module, ABC):
    """A log potential, 0 at best, that multiplies the model's density: ``pyro.factor``.

    Its normalization, which depends on the other priors, is left out: objectives with it bound
    the evidence up to a constant, and draws of the model are drawn without it.

    Parameters
    ----------
    name
        Of its site.

    Attributes
    ----------
    local
        It looks at each particle's conformation (where the model has one), and counts once for
        each; else once in all.
    """

    local: bool = True

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    @abstractmethod
    def value(self, volume: Volume, coefficients: Tensor, conformation: Tensor | None) -> Tensor:
        """Nats [*] of one volume's coefficients, at conformations [*, size]."""

    def forward(
        self, volume: Volume, coefficients: Tensor, conformation: Tensor | None = None
    ) -> Tensor:
        """Nats [*] of coefficients that may have batch dimensions, at conformations [*, size]."""
        events = len(volume.prior().event_shape)
        if coefficients.dim() == events:
            return self.value(volume, coefficients, conformation)
        if conformation is None:
            rows = coefficients.flatten(0, -events - 1)
            found = torch.stack([self.value(volume, row, None) for row in rows])
            return found.reshape(coefficients.shape[:-events])
        here = torch.eye(3).to(coefficients)  # broadcast as slices are, which have a view

        def one(own: Tensor, view: Tensor, state: Tensor | None) -> Tensor:
            return self.value(volume, own, state)[..., None]

        return each_map(one, coefficients, events, here, conformation)[..., 0]


class Bonds(Term):
    """Bonds of a chain of Gaussians keep their lengths.

    Parameters
    ----------
    bonds
        Pairs of sites, [b, 2].
    length
        A, [b] or a number.
    sd
        Standard deviation of a length, A.
    """

    bonds: Tensor
    length: Tensor

    def __init__(
        self,
        bonds: Tensor,
        length: Tensor | float = ALPHA_CARBON_BOND,
        sd: float = 0.1,
        *,
        name: str = "bonds",
    ) -> None:
        super().__init__(name)
        self.sd = _deviation(sd)
        self.register_buffer("bonds", bonds)
        self.register_buffer("length", torch.as_tensor(length))

    def value(self, volume: Volume, coefficients: Tensor, conformation: Tensor | None) -> Tensor:
        """Minus the squared strains, over twice the variance."""
        places = _places(volume, coefficients, conformation)
        return bond_term(places, self.bonds, self.length.to(places), self.sd)


class Deviation(Term):
    """Gaussians stay near where a structure has them.

    Parameters
    ----------
    reference
        Of the sites, [n, 3], A.
    sd
        Standard deviation of a coordinate, A.
    superpose
        Move the reference onto the sites first, so that moves of the whole body are free.
    """

    reference: Tensor

    def __init__(
        self, reference: Tensor, sd: float, *, superpose: bool = False, name: str = "deviation"
    ) -> None:
        super().__init__(name)
        self.sd, self.superpose = _deviation(sd), superpose
        self.register_buffer("reference", reference.clone())

    def value(self, volume: Volume, coefficients: Tensor, conformation: Tensor | None) -> Tensor:
        """Minus the squared distances, over twice the variance."""
        places = _places(volume, coefficients, conformation)
        return deviation_term(places, self.reference.to(places), self.sd, superpose=self.superpose)


class Positivity(Term):
    """The map is not below zero; of a volume of conformations, that at conformation 0.

    Parameters
    ----------
    sd
        Depth of a voxel that costs half a nat.
    """

    local = False

    def __init__(self, sd: float, *, name: str = "positivity") -> None:
        super().__init__(name)
        self.sd = _deviation(sd)

    def value(self, volume: Volume, coefficients: Tensor, conformation: Tensor | None) -> Tensor:
        """Minus the squared depths, over twice the variance."""
        size = volume.conformation_size
        state = coefficients.new_zeros(size) if size else None
        return positivity_term(volume.density(coefficients, state), self.sd)


def _places(volume: Volume, coefficients: Tensor, conformation: Tensor | None) -> Tensor:
    """Positions [*, n, 3] of a volume's sites, A."""
    if isinstance(volume, GaussianMixture):
        return volume.sites(coefficients, conformation)[0]
    got = type(volume).__name__
    raise InputError("structure term", expected="a volume of Gaussians", got=got)


def _deviation(sd: float) -> float:
    require(sd > 0, "structure term", expected="a positive deviation", got=f"{sd:g}")
    return sd
