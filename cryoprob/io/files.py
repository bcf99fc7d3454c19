"""Files found, with clear errors for what is missing, and files replaced whole."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cryoprob.checks import InputError, OutputError
from cryoprob.types import PathType

__all__ = ["replacing", "require_file", "resolve"]

_POINTER = b"version https://git-lfs"


def require_file(path: PathType, what: str) -> Path:
    """The path, if it is a readable file with content that is not a git-lfs pointer.

    Raises
    ------
    InputError
        If it is missing, a folder, unreadable, empty or a pointer of git-lfs.
    """
    found = Path(path)
    if found.is_dir() or not found.exists():
        got = "a folder" if found.is_dir() else "no such file"
        raise InputError(str(path), expected=what, got=got, remedy="Check the path.")
    try:
        with found.open("rb") as stream:
            start = stream.read(len(_POINTER))
    except OSError as error:
        raise InputError(str(path), expected=what, got=error.strerror or "an error") from error
    if start == _POINTER:
        remedy = "Fetch the real file with `git lfs pull`."
        got = "the text of a git-lfs pointer"
        raise InputError(str(path), expected=what, got=got, remedy=remedy)
    if not start:
        raise InputError(str(path), expected=what, got="an empty file")
    return found


@contextmanager
def replacing(path: PathType) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when the block ends without an error.

    An interrupted or failed block leaves the earlier file, if any, untouched.

    Raises
    ------
    OutputError
        If the file cannot be written (no folder, no permission, disk full).
    """
    final = Path(path)
    temporary = final.with_name(f".{final.name}.{os.getpid()}.part")
    try:
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, final)
    except OSError as error:
        raise OutputError(
            str(path),
            expected="a place to write",
            got=error.strerror or str(error),
            remedy="Check the folder, its permissions and the free space.",
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def resolve(name: str, folder: Path) -> Path | None:
    """The file that ``name`` means, seen from ``folder``, its parents, then the working folder.

    RELION writes names relative to the project folder, some parent of the folder of the table.
    """
    places = [folder, *folder.resolve().parents, Path.cwd()]
    return next((p / name for p in places if (p / name).is_file()), None)
