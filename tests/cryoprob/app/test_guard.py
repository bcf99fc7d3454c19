"""How commands end."""

import io
import warnings

import pytest
import typer

from cryoprob.app.guard import Interrupted, guarded, notes, paragraph
from cryoprob.checks import InputError, OutputError, warn


def test_a_paragraph_is_wrapped_but_paths_stay_whole(monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    stream = io.StringIO()
    path = "/a-long-folder/with-many-hyphens/file.star"
    paragraph(f"Error: {path}: expected\n\n   a table of particles, got nothing", stream)
    lines = stream.getvalue().splitlines()
    assert path + ":" in lines
    assert all(len(line) <= 30 for line in lines if path not in line)
    assert " ".join(lines) == f"Error: {path}: expected a table of particles, got nothing"


def test_warnings_about_data_are_said_once_each_and_others_stay():
    said = []
    with pytest.warns(RuntimeWarning, match="something else") as others, notes(said.append):
        for text in ("odd", "odder", "odd"):
            warn(text)
        warnings.warn("something else", RuntimeWarning, stacklevel=1)
    assert said == ["Note: odd", "Note: odder"]
    assert len(others) == 1


def test_afterwards_warnings_are_errors_again():
    with notes(lambda text: None):
        warn("odd")
    with pytest.raises(Warning, match="odd"):
        warn("odd")


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (InputError("file", expected="this", got="that"), 2, "Error: file: expected this"),
        (OutputError("file", expected="room", got="none"), 2, "Error: file: expected room"),
        (Interrupted("go on like so"), 130, "go on like so"),
        (KeyboardInterrupt(), 130, "Stopped."),
    ],
)
def test_codes_and_words(error, code, words, capsys):
    @guarded
    def command():
        raise error

    with pytest.raises(typer.Exit) as end:
        command()
    assert end.value.exit_code == code
    assert capsys.readouterr().err.startswith(words)


def test_our_own_mistakes_are_not_hidden():
    @guarded
    def command():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        command()
