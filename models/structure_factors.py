"""Terms of a model beside its sites: log potentials of structures and maps, as Pyro's factors."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from cryoprob.checks import InputError, require
from cryoprob.models.volumes.base import Volume
from cryoprob.models.volumes.gaussian_mixture import GaussianMixture
from cryoprob.models.volumes.structure_terms import bond_term, deviation_term, positivity_term

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
        own = len(volume.prior().event_shape)
        batch = coefficients.shape[: coefficients.dim() - own]
        rows = coefficients.reshape(-1, *coefficients.shape[len(batch) :])
        if len(rows) == 1:
            return self.value(volume, rows[0], conformation).expand(self._shape(batch, conformation))
        shape = self._shape(batch, conformation)
        if conformation is None:
            return torch.stack([self.value(volume, row, None) for row in rows]).reshape(shape)
        states = conformation.expand(*shape, -1).reshape(len(rows), -1, conformation.shape[-1])
        pairs = zip(rows, states, strict=True)
        return torch.stack([self.value(volume, *pair) for pair in pairs]).reshape(shape)
