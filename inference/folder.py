"""The folder of a fit: free, or that of the fit to go on with."""

from pathlib import Path

from cryoprob.checks import OutputError, require
from cryoprob.inference.config import FitConfig
from cryoprob.io.files import replacing

__all__ = ["check_folder", "open_folder"]


def check_folder(folder: Path, config: FitConfig, resume: bool) -> None:
    """Find that the folder is free, or that it holds the fit to be resumed; change nothing.

    Raises
    ------
    InputError
        If it is not, naming the settings that are other ones.
    """
    settings = folder / "config.toml"
    if settings.exists():
        require(
            resume,
            str(folder),
            expected="a new or empty folder",
            got="the outputs of an earlier fit",
            remedy="Add --resume to go on with it, or give another --out.",
        )
        changes = FitConfig.from_toml(settings).changes(config)
        require(
            not changes,
            str(settings),
            expected="the settings of the fit to resume",
            got=", ".join(changes),
            remedy="Resume with the same options (or none), or start in a new folder.",
        )
        return
    require(
        not resume,
        str(folder),
        expected="a fit to resume",
        got="no config.toml",
        remedy="Leave out --resume to start.",
    )


def open_folder(folder: Path, config: FitConfig) -> None:
    """Make the folder and its config.toml, unless they are there.

    Raises
    ------
    OutputError
        If it cannot be made.
    """
    settings = folder / "config.toml"
    if settings.exists():
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        got = error.strerror or str(error)
        raise OutputError(str(folder), expected="a folder to write into", got=got) from error
    with replacing(settings) as temporary:
        temporary.write_text(config.to_toml())
