"""All presets, in the order of the review's tables; each is a file of this folder."""

from importlib import import_module

from cryoprob.checks import require
from cryoprob.inference.presets.base import Preset

__all__ = ["PRESETS", "load"]

PRESETS = (
    "relion-refine3d",
    "relion-class3d",
    "cryosparc-abinitio",
    "cryosparc-refine",
    "cryodrgn",
    "cryodrgn-bnb",
    "cryodrgn2",
    "cryoposenet",
    "cryoai",
    "cryofire",
    "fstdiff",
)


def load(name: str) -> Preset:
    """The preset of a name.

    Raises
    ------
    InputError
        If there is none.
    """
    require(name in PRESETS, "--preset", expected=", ".join(PRESETS), got=repr(name))
    found = import_module(f"cryoprob.inference.presets.{name.replace('-', '_')}")
    preset: Preset = found.PRESET
    return preset
