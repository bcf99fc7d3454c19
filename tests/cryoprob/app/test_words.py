"""Numbers in words."""

import pytest

from cryoprob.app.words import (
    angstrom,
    bullet,
    duration,
    facts,
    grid_spacing,
    say,
    size,
    table,
    texts,
)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (3599, "59 min 59 s")]
    + [(3600, "1 h 00 min"), (90000, "25 h 00 min"), (None, "-"), (float("inf"), "-")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(999, "999 bytes"), (1000, "1.0 kB"), (2.5e9, "2.5 GB"), (3e15, "3000.0 TB")],
)
def test_sizes(count, text):
    assert size(count) == text


def test_lengths():
    assert angstrom(9.87) == "9.9 A" and angstrom(320.4) == "320 A"
    assert angstrom(None) == angstrom(float("inf")) == "none"
    assert [grid_spacing(o) for o in (2, 3, 5)] == ["15 deg", "7.5 deg", "1.88 deg"]


def test_brackets_in_file_names_are_printed_as_they_are(capsys):
    say("run[1]/volume.mrc")
    bullet("run[2]")
    facts([("name", "run[3]")], "run[3]")
    table(["run", "number"], [("run[4]", "5")], "run[5]")
    texts(["run"], [["run[6]"]], "run[7]")
    said = capsys.readouterr().out
    assert all(f"run[{n}]" in said for n in range(1, 8))
