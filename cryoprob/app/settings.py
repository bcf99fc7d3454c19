"""The ``settings`` command: what ``--set`` takes, as the schedule itself says it."""

from dataclasses import fields
from inspect import cleandoc

from cryoprob.app.words import say, texts
from cryoprob.inference.schedule import Schedule

__all__ = ["described", "show_settings"]


def described() -> list[tuple[list[str], str]]:
    """Names and their meaning, from the docstring of :class:`Schedule`; some share one."""
    found: list[tuple[list[str], list[str]]] = []
    text = cleandoc(Schedule.__doc__ or "").partition("Attributes\n----------\n")[2]
    for line in filter(None, text.splitlines()):
        if line.startswith(" "):
            found[-1][1].append(line.strip())
        else:
            found.append((line.split(", "), []))
    return [(names, " ".join(words).replace("``", "")) for names, words in found]


def show_settings() -> None:
    """Print every setting with its default and its meaning."""
    defaults = {item.name: _word(item.default) for item in fields(Schedule)}
    rows = [
        ("\n".join(names), "\n".join(defaults[name] for name in names), meaning)
        for names, meaning in described()
    ]
    texts(["setting", "default", "meaning"], rows)
    say(
        "\nGive them to fit and compare by --set name=value. Presets have defaults of their own:"
        " cryoprob presets NAME. Those of a finished fit are in its config.toml."
    )


def _word(value: object) -> str:
    """A value as ``--set`` takes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)
