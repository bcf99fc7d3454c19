"""Numbers and words of the schedule: what cannot be meant is refused, naming the setting."""

from dataclasses import fields
from math import inf, nan

import pytest

from cryoprob.checks import InputError
from cryoprob.inference.schedule import Schedule

NUMBERS = [item.name for item in fields(Schedule) if type(item.default) in (int, float)]
FRACTIONS = [item.name for item in fields(Schedule) if type(item.default) is float]
AUTOMATIC = ["max_radius", "draws", "learn_steps", "learn_rate", "warm_steps", "batch", "zdim"]
AUTOMATIC += ["polish", "beta", "kl_start"]


def refused(name, value):
    with pytest.raises(InputError) as caught:
        Schedule(**{name: value})
    assert caught.value.where == name and caught.value.got == str(value)
    return caught.value.expected


@pytest.mark.parametrize("name", NUMBERS)
def test_no_number_is_below_zero(name):
    assert refused(name, -1) in ("0 or more", "a positive number")


@pytest.mark.parametrize("value", [nan, inf])
@pytest.mark.parametrize("name", FRACTIONS)
def test_every_number_is_finite(name, value):
    assert refused(name, value) in ("0 or more", "a positive number")


@pytest.mark.parametrize("name", ["width", "layers", "epochs", "shift_step", "beam", "starts"])
def test_what_must_be_there_is_not_zero(name):
    assert refused(name, 0) == "a positive number"


def test_zero_stays_what_means_automatic():
    assert Schedule(**dict.fromkeys(AUTOMATIC, 0)) == Schedule()
    assert Schedule(batch=10**6).batch == 10**6  # more than there are images


@pytest.mark.parametrize("name", ["interpolation", "m_step", "bound", "volume"])
def test_words_are_those_that_there_are(name):
    with pytest.raises(InputError, match=f"^{name}: expected .* or .*, got 'cubic'"):
        Schedule(**{name: "cubic"})
    assert Schedule(interpolation="nearest").interpolation == "nearest"


def test_words_of_the_command_line_are_checked_alike():
    for text in ("nan", "inf", "-1"):
        with pytest.raises(InputError, match="^epochs: expected a positive number"):
            Schedule.parse({"epochs": text})
