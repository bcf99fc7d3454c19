"""One independent reconstruction: model, guide and images, and what a checkpoint keeps of them."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cryoprob.inference.guide import Guide
from cryoprob.inference.m_step import Solution
from cryoprob.inference.members import Member, members
from cryoprob.models.contrast import Contrast
from cryoprob.models.particle_model import ParticleModel

__all__ = ["Half", "pack_half", "unpack_half"]


@dataclass(eq=False)
class Half:
    """One independent reconstruction: its model, guide and images."""

    model: ParticleModel
    guide: Guide
    index: Tensor
    solutions: list[Solution] = field(default_factory=list)
    optimizer: dict[str, Any] = field(default_factory=dict)

    @property
    def solved(self) -> Solution:
        """The last solution (of the first class); there is one after the first M-step."""
        return self.solutions[0]

    @property
    def members(self) -> list[Member]:
        """Its classes, or itself."""
        return members(self.model, self.guide)


def pack_half(half: Half) -> dict[str, Any]:
    """The numbers of a model and its guide."""
    model, state = half.model, half.model.conformation
    return {
        "guide": half.guide.state_dict(),
        "optimizer": half.optimizer,
        "volume": model.volume.state_dict(),
        "conformation": {} if state is None else state.state_dict(),
        "sigma2": model.noise.sigma2,
        "shift_sigma": model.shift.sigma,
        **_factors(model),
        "radius": torch.tensor(model.band.radius),
    }


def unpack_half(half: Half, packed: dict[str, Any]) -> None:
    """Put the numbers of a checkpoint back."""
    model = half.model
    model.volume.set_band(int(packed["radius"]))
    model.volume.load_state_dict(packed["volume"])
    if model.conformation is not None:
        model.conformation.load_state_dict(packed["conformation"])
    half.guide.load_state_dict(packed["guide"])
    half.optimizer = packed["optimizer"]
    own = {"sigma2": model.noise.sigma2, "shift_sigma": model.shift.sigma, **_factors(model)}
    for name, target in own.items():
        target.copy_(packed[name])


def _factors(model: ParticleModel) -> dict[str, Tensor]:
    """Known amplitudes and noise factors; nothing where the contrast is a latent site."""
    known = model.contrast
    if not isinstance(known, Contrast):
        return {}
    return {"scale": known.scale, "spread": known.spread}
