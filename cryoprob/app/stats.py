"""The statistics of every image that a fit leaves in ``posterior.nc``."""

from pathlib import Path
from typing import TYPE_CHECKING

from cryoprob.checks import InputError

if TYPE_CHECKING:
    import xarray

__all__ = ["read_stats"]


def read_stats(file: Path) -> "xarray.Dataset":
    """The group ``sample_stats``, in memory.

    Raises
    ------
    InputError
        If the file is damaged.
    """
    import xarray

    try:
        return xarray.load_dataset(file, group="sample_stats", engine="h5netcdf")
    except (OSError, KeyError, ValueError) as error:  # cut short, or of another program
        wanted, got = "what a finished fit writes", f"a damaged file ({error})"
        remedy = "Write it anew: cryoprob fit --resume."
        raise InputError(str(file), expected=wanted, got=got, remedy=remedy) from error
