"""The bench command's measurements: what is timed computes the right thing."""

import pytest
import torch

from cryoprob.app.bench import (
    Pair,
    by_hand,
    enumeration,
    full_step,
    least_seconds,
    made_up,
    run_bench,
    scoring,
)
from cryoprob.fourier.bands import full_band
from cryoprob.inference.e_step import e_step


@pytest.fixture(scope="module")
def problem():
    """Twelve images of 16 pixels, 72 rotations x 25 shifts, shells to 5."""
    return made_up(12, 16, 5, order=0)


def test_the_shapes_are_those_of_the_grid(problem):
    assert problem.shapes == (72, 25, 2 * len(full_band(16).prefix(5)))


def test_the_sum_by_hand_is_the_e_step_s_evidence(problem):
    batch = problem.stack.batch(torch.arange(12), full_band(16))
    found = e_step(problem.model, problem.guide, problem.stack).summary.bound.sum()
    # float32 scores of some 300 nats an image: 12 images, a few rounding errors of 3e-5 each
    assert by_hand(problem, batch) == pytest.approx(float(found), abs=3e-3)


def test_enumeration_agrees_with_the_sum_by_hand(problem):
    pair, apart = enumeration(problem, count=4, repeats=1)
    assert apart < 1e-3  # nats; float32 sums of 256 numbers per image
    assert 0 < pair.seconds < float("inf") and 0 < pair.bare_seconds < float("inf")


def test_work_is_counted(problem):
    rotations, shifts, numbers = problem.shapes
    assert scoring(problem, 3, repeats=1).operations == 2 * 3 * rotations * shifts * numbers
    assert full_step(problem).operations == 4 * 12 * rotations * shifts * numbers


def test_a_full_step_leaves_the_model_as_it_was(problem):
    before = {name: value.clone() for name, value in problem.model.state_dict().items()}
    full_step(problem)
    after = problem.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_rates_are_of_the_products():
    pair = Pair("", seconds=2.0, bare_seconds=1.0, operations=8.0)
    assert (pair.ratio, pair.rate) == (0.5, 4.0)


def test_the_first_call_is_not_timed():
    calls = []
    least_seconds([lambda: calls.append("a"), lambda: calls.append("b")], repeats=2)
    assert calls == ["a", "b"] * 3


def test_the_table_is_printed(capsys):
    run_bench(n=64, box=16, radius=3, order=0)
    printed = capsys.readouterr().out
    assert "E-step, blocks of 64" in printed and "GFLOP/s" in printed and "M-step" in printed
