"""Site names, and the one particle plate that model and guide share."""

import pyro

from cryoprob.particles import Batch

__all__ = ["CONFORMATION", "IMAGE", "ROTATION", "SHIFT", "VOLUME", "particles"]

VOLUME = "volume"
ROTATION = "rotation"
SHIFT = "shift"
CONFORMATION = "conformation"
IMAGE = "image"


def particles(batch: Batch) -> pyro.plate:
    """The plate over particles, scaled from the batch to all ``batch.total`` of them."""
    return pyro.plate("particles", size=batch.total, subsample=batch.index, dim=-1)
