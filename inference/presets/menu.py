"""All presets, in the order of the review's tables; each is a file of this folder."""

from importlib import import_module

from cryoprob.checks import did_you_mean, require
from cryoprob.inference.presets.base import Preset

__all__ = ["PRESETS", "load", "module_of"]

PRESETS = (
    "relion-refine3d",
    "relion-class3d",
    "cryosparc-abinitio",
    "cryosparc-refine",
    "cryodrgn",
    "cryodrgn-bnb",
    "cryodrgn2",
    "cryofold",
    "3dva",
    "ppca",
    "cryoposenet",
    "e2gmm",
    "atomvae",
    "cryoai",
    "cryofire",
    "fstdiff",
    "covariance",
)


def load(name: str) -> Preset:
    """The preset of a name.

    Raises
    ------
    InputError
        If there is none.
    """
    expected, remedy = "a name that `cryoprob presets` lists", did_you_mean(name, PRESETS)
    require(name in PRESETS, "--preset", expected=expected, got=repr(name), remedy=remedy)
    preset: Preset = import_module(module_of(name)).PRESET
    return preset


def module_of(name: str) -> str:
    """The module of a preset: its name, as Python can have it."""
    plain = name.replace("-", "_")
    return f"cryoprob.inference.presets.{'_' * plain[0].isdigit()}{plain}"
