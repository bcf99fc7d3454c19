"""The peak of this process's memory, where the system tells (Linux)."""

from pathlib import Path

__all__ = ["peak_bytes", "reset_peak"]

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak() -> bool:
    """Count the peak from here on; whether the system lets us."""
    try:
        _RESET.write_text("5")
    except OSError:
        return False
    return True


def peak_bytes() -> int | None:
    """Largest resident memory since the last reset (or the start), or None if not known."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("VmHWM")]
    return 1024 * int(found[0]) if found else None
