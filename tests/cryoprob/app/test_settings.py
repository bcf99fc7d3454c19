"""The list of what --set takes."""

from dataclasses import fields

from typer.testing import CliRunner

from cryoprob.app.cli import app
from cryoprob.app.settings import described
from cryoprob.inference.schedule import Schedule


def test_every_setting_has_a_meaning():
    found = described()
    names = [name for group, _ in found for name in group]
    assert sorted(names) == sorted(item.name for item in fields(Schedule))
    assert all(meaning.endswith((".", ")")) and "``" not in meaning for _, meaning in found)


def test_the_list_fits_a_terminal():
    result = CliRunner().invoke(app, ["settings"], env={"COLUMNS": "80"})
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert max(len(line) for line in lines) <= 80
    rows = {line.split()[0]: line.split()[1] for line in lines if len(line.split()) > 1}
    assert rows["mass"] == "0.999" and rows["turn"] == "true" and rows["contrast"] == "false"
    assert rows["layers"] == "3"  # described together with the width
    words = {word for _, meaning in described() for word in meaning.split()}
    assert words <= {word for line in lines for word in line.split()}  # none is broken
