"""The command line as its user meets it."""

import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version

import pytest
from typer.testing import CliRunner

from cryoprob.app.cli import app

COMMANDS = ["demo", "info", "simulate", "fit", "compare", "evaluate", "bench", "presets"]
COMMANDS += ["settings", "latent"]
LATER = ["calibrate", "report"]
SIMULATE = ["simulate", "--phantom", "blobs", "--box", "16", "--pixel-size", "4", "--n", "9"]


def run(*arguments):
    """Exit code, standard output and standard error of a command in this process."""
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def started(*arguments):
    """A command in a process of its own, which heeds Ctrl-C even where tests run unheeding."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80"}
    command = [sys.executable, "-m", "cryoprob", *(str(a) for a in arguments)]
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # in the background it is ignored
    return subprocess.Popen(command, env=environment, preexec_fn=heed, **pipes)


def one_paragraph(text):
    """Whether a text is one paragraph, of lines that fit a terminal but for long paths."""
    lines = text.splitlines()
    return "" not in lines and all(len(line) <= 100 or " " not in line for line in lines)


@pytest.mark.parametrize("flag", ["--help", "--version"])
def test_help_and_version_answer_at_once(flag):
    best = float("inf")
    for _ in range(3):
        before = os.times()
        process = started(flag)
        out, err = process.communicate()
        after = os.times()
        best = min(best, sum(after[2:4]) - sum(before[2:4]))  # CPU seconds of children
        assert process.returncode == 0 and not err
    assert ("simulate" in out) if flag == "--help" else out == f"cryoprob {version('cryoprob')}\n"
    assert best < 0.5  # the bar of the design; waiting is little


def test_help_needs_no_torch():
    code = (
        "import sys; from typer.testing import CliRunner; from cryoprob.app.cli import app;"
        "assert CliRunner().invoke(app, ['fit', '--help']).exit_code == 0;"
        "assert not {'torch', 'pyro', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help_with_an_example(command):
    code, out, _ = run(command, "--help")
    assert code == 0
    assert "Example" in out and f"cryoprob {command}" in out.partition("Example")[2]


def test_only_what_exists_is_listed():
    _, out, _ = run("--help")
    assert all(f" {name} " in out for name in COMMANDS)
    assert not any(f" {name} " in out for name in LATER)
    assert all(run(name)[0] == 2 for name in LATER)


def test_simulate_then_info(tmp_path):
    code, out, err = run(*SIMULATE, "--out", tmp_path / "sim", "--seed", 4)
    assert code == 0 and not err
    assert "seed 4" in out and "cryoprob fit" in out
    code, out, err = run("info", tmp_path / "sim" / "particles.star")
    assert code == 0 and not err
    assert "9 images" in out.replace("Only ", "") and "16 pixels of 4 A = 64 A" in out
    assert "not known" in out and "1.0" in out


def test_simulate_draws_and_tells_a_seed(tmp_path):
    seeds = []
    for name in ("a", "b"):
        _, out, _ = run(*SIMULATE, "--out", tmp_path / name)
        seeds.append(out.partition("seed ")[2].partition(":")[0])
    assert seeds[0].isdigit() and seeds[0] != seeds[1]
    run(*SIMULATE, "--out", tmp_path / "again", "--seed", seeds[0])
    first, again = ((tmp_path / n / "particles.mrcs").read_bytes() for n in ("a", "again"))
    assert first == again


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["info", "absent.star"], "absent.star: expected"),
        (["fit", "absent.star", "--out", "new"], "absent.star: expected"),
        (["fit", "--out", "new"], "PARTICLES: expected a STAR file"),
        (["fit", "--out", "new", "--resume"], "in new, got no such folder. There is nothing to"),
        (["fit", "--out", ".", "--resume"], "a folder without config.toml. There is nothing to"),
        (["fit", "p.star", "--out", "new", "--resume"], "start without --resume"),
        (["fit", "p.star", "--out", "new", "--set", "mass"], "key=value"),
        (["fit", "p.star", "--out", "new", "--set", "nonsense=1"], "nonsense"),
        (["fit", "p.star", "--out", "new", "--poses", "some"], "ignore or known or local"),
        (["fit", "p.star", "--out", "new", "--family", "magic"], "exact-em"),
        (["fit", "p.star", "--out", "new", "--family", "exactem"], "Did you mean exact-em?"),
        (["fit", "p.star", "--out", "new", "--preset", "cryodrg"], "Did you mean cryodrgn?"),
        (["fit", "p.star", "--out", "new", "--set", "zdims=2"], "Did you mean zdim?"),
        (["fit", "p.star", "--out", "new", "--set", "zdims=2"], "`cryoprob settings` lists"),
        (["presets", "CryoFire"], "Did you mean cryofire?"),
        (["presets", "magic"], "expected a name that `cryoprob presets` lists, got 'magic'."),
        (["compare", "p.star", "--out", "new", "--families", "svy"], "Did you mean svi?"),
        (["evaluate", "absent", "--truth", "x.mrc"], "a finished fit"),
        (["simulate", "--out", "new"], "one of --structure, --map, --phantom"),
        (["simulate", "--phantom", "cat", "--box", 8, "--pixel-size", 2, "--out", "new"], "blobs"),
        (["simulate", "--phantom", "blobs", "--box", 8, "--out", "new"], "--pixel-size"),
        (["simulate", "--phantom", "blobs", "--pixel-size", 2, "--out", "new"], "--box"),
    ],
)
def test_bad_input_is_one_paragraph_and_code_2(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*arguments)
    assert code == 2 and not out
    assert err.startswith("Error:") and one_paragraph(err)
    assert words in " ".join(err.split())
    assert not list(tmp_path.iterdir())  # nothing is left that would be in the way


@pytest.mark.parametrize("name", ["no_voltage", "empty_loop", "ragged", "truncated_row"])
def test_bad_tables_are_refused_by_info_and_fit(data, name, tmp_path):
    path = data / "metadata" / f"{name}.star"
    for arguments in (["info", path], ["fit", path, "--out", tmp_path / "out"]):
        code, _, err = run(*arguments)
        errors = err[err.index("Error:") :]
        assert code == 2 and f"{name}.star" in errors and one_paragraph(errors)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--reference", "no.mrc"], "no such file"),
        (["--mask", "no.mrc"], "no.mrc"),
        (["--device", "cuda:99"], "--device cuda:99"),
        (["--poses", "known"], "rlnAngle"),
    ],
)
def test_nothing_is_said_before_bad_input(simulated, tmp_path, options, words):
    code, out, err = run("fit", simulated / "particles.star", "--out", tmp_path / "new", *options)
    assert code == 2 and not out
    assert err.startswith("Error:") and words in " ".join(err.split())
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("preset", [[], ["--preset", "relion-class3d"], ["--preset", "cryodrgn"]])
@pytest.mark.parametrize(
    ("name", "what"), [("a.pdb", "an atomic structure"), ("a.star", "a STAR")]
)
def test_other_files_in_the_place_of_a_map(simulated, tmp_path, preset, name, what):
    reference = tmp_path / name
    reference.write_text("ATOM      1  CA  ALA A   1       0.000   0.000   0.000\n" * 40)
    given = [
        simulated / "truth.star",
        "--out",
        tmp_path / "new",
        "--reference",
        reference,
        *preset,
    ]
    code, out, err = run("fit", *given)
    told = " ".join(err.split())
    assert code == 2 and not out and not (tmp_path / "new").exists()
    assert f"{name}: expected an MRC file (.mrc, .mrcs, .map), got {what}" in told


def test_one_image_has_no_conformations_to_compare(tmp_path):
    one = ["simulate", *SIMULATE[1:-1], 1, "--out", tmp_path / "sim", "--seed", 1]
    assert run(*one)[0] == 0
    for name in ("cryodrgn", "ppca"):
        given = [tmp_path / "sim" / "truth.star", "--out", tmp_path / "new", "--preset", name]
        code, out, err = run("fit", *given)
        assert code == 2 and not out and not (tmp_path / "new").exists()
        assert f"2 images or more, whose conformations {name} can" in " ".join(err.split())


def test_a_fit_is_never_overwritten(simulated, fitted):
    before = {path.name: path.read_bytes() for path in fitted.iterdir()}
    code, _, err = run("fit", simulated / "particles.star", "--out", fitted)
    assert code == 2
    assert "--resume" in err and "nothing was changed" in " ".join(err.split())
    assert {path.name: path.read_bytes() for path in fitted.iterdir()} == before


def test_fit_says_what_it_takes(simulated, tmp_path):
    common = ["--set", "max_iterations=1", "--seed", 5]
    given = [simulated / "truth.star", "--out", tmp_path / "a", "--poses", "known"]
    code, out, _ = run("fit", *given, *common)
    text = " ".join(out.split())
    assert code == 0
    assert "Poses: those of the file are taken as exact" in text and "Seed: 5." in text
    for name in ("config.toml", "volume.mrc", "volume_std.mrc", "particles.star", "posterior.nc"):
        assert (tmp_path / "a" / name).exists()
    # the settings of the first run, into another folder: the same map
    code, _, _ = run("fit", "--config", tmp_path / "a" / "config.toml", "--out", tmp_path / "b")
    assert code == 0
    first, again = ((tmp_path / n / "volume.mrc").read_bytes() for n in "ab")
    assert first == again


def test_the_table_needs_a_pixel_size_or_the_option(simulated, tmp_path):
    text = (simulated / "truth.star").read_text()
    stripped = [
        " ".join(line.split()[:2] + line.split()[3:]) if "opticsGroup1" in line else line
        for line in text.splitlines()
        if "_rlnImagePixelSize" not in line
    ]
    path = simulated / "no_pixel_size.star"
    path.write_text("\n".join(stripped) + "\n")
    code, _, err = run("info", path)
    assert code == 2 and "pixel size" in err
    code, out, _ = run("info", path, "--pixel-size", 4)
    assert code == 0 and "16 pixels of 4 A" in out
    path.unlink()


def test_ctrl_c_ends_with_130_and_the_words_to_go_on(simulated, tmp_path):
    out = tmp_path / "fit"
    process = started("fit", simulated / "particles.star", "--out", out, "--seed", 1)
    limit = time.monotonic() + 60
    while not (out / "checkpoint.pt").exists() and time.monotonic() < limit:
        time.sleep(0.1)
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert one_paragraph(err) and "Traceback" not in err
    assert f"cryoprob fit --resume --out {out}" in " ".join(err.split())
    assert not list(out.glob(".*"))  # no half-written file


@contextmanager
def largest_file(count):
    """No file of this process grows beyond ``count`` bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_ends_with_2_and_no_half_written_file(tmp_path):
    with largest_file(20000):
        code, _, err = run(*SIMULATE, "--n", 100, "--out", tmp_path / "sim", "--seed", 1)
    assert code == 2
    assert one_paragraph(err)
    assert "particles.mrcs: expected a place to write" in " ".join(err.split())
    assert not list((tmp_path / "sim").iterdir())


def test_an_output_that_cannot_be_written_keeps_the_fit(simulated, fitted, tmp_path):
    blocked = tmp_path / "fit" / "volume_std.mrc"
    blocked.mkdir(parents=True)
    common = ["--seed", 1, "--threads", 1, "--set", "max_iterations=4"]
    given = ["fit", simulated / "truth.star", "--poses", "known", *common]
    code, _, err = run(*given, "--out", tmp_path / "fit")
    assert code == 2 and err.startswith("Error:") and one_paragraph(err)
    assert f"Go on with: cryoprob fit --resume --out {tmp_path / 'fit'}" in " ".join(err.split())
    blocked.rmdir()
    code, _, _ = run("fit", "--resume", "--out", tmp_path / "fit")
    assert code == 0
    whole, resumed = ((p / "volume.mrc").read_bytes() for p in (fitted, tmp_path / "fit"))
    assert whole == resumed
