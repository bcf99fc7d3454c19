"""Site names, and the one particle plate that model and guide share."""

import pyro
from torch import Tensor

from cryoprob.checks import InputError
from cryoprob.particles import Batch

__all__ = [
    "CONFORMATION",
    "CONTRAST",
    "DEFOCUS",
    "IMAGE",
    "LATENT",
    "ROTATION",
    "SHIFT",
    "VOLUME",
    "check_particles",
    "particles",
]

VOLUME = "volume"
ROTATION = "rotation"
SHIFT = "shift"
CONFORMATION = "conformation"
CONTRAST = "contrast"
DEFOCUS = "defocus"
IMAGE = "image"

LATENT = (VOLUME, ROTATION, SHIFT, CONFORMATION, CONTRAST, DEFOCUS)
"""All but the image; a model may have none of the last three."""


def particles(batch: Batch) -> pyro.plate:
    """The plate over particles, scaled from the batch to all ``batch.total`` of them.

    Model and guide both own it. Pyro's automatic guides would draw a minibatch of their own over
    the batch's; give them this one: ``AutoNormal(model, create_plates=sites.particles)``.
    """
    return pyro.plate("particles", size=batch.total, subsample=batch.index, dim=-1)


def check_particles(index: Tensor | None, batch: Batch) -> None:
    """Raise unless the plate's indices in force, [n], are the batch's.

    Raises
    ------
    InputError
        If a guide has put its own minibatch in the place of the batch's particles.
    """
    assert index is not None  # the plate has a size
    if index is batch.index or index.equal(batch.index):
        return
    raise InputError(
        "plate of particles",
        expected=f"the batch's {len(batch)} particles, {_words(batch.index)}",
        got=f"{len(index)} drawn by the guide, {_words(index)}",
        remedy="Let the guide own the batch's plate: an automatic guide needs"
        " create_plates=sites.particles, one of your own `with sites.particles(batch):`.",
    )


def _words(index: Tensor) -> str:
    numbers = ", ".join(map(str, index[:4].tolist()))
    return f"{numbers}{', ...' if len(index) > 4 else ''}"
