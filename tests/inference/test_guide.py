"""Guides: which mixtures are refused, what their nats are called, and how sites are drawn."""

import pytest
import torch
from problems import make_problem

from cryoprob.checks import InputError
from cryoprob.inference.e_step import e_step
from cryoprob.inference.encoders.fourier_mlp import FourierMLP
from cryoprob.inference.guide import Guide
from cryoprob.inference.laws.heads import Heads
from cryoprob.inference.laws.rotations import ConcentratedLaw, DiracRotation
from cryoprob.inference.laws.shifts import DiracShift, NormalShift
from cryoprob.inference.treatments.amortized import Amortized
from cryoprob.inference.treatments.exact import Exact
from cryoprob.inference.treatments.importance import Importance
from cryoprob.inference.treatments.known import Known
from cryoprob.inference.treatments.local import Local
from cryoprob.inference.treatments.modal import Modal
from cryoprob.inference.treatments.per_image import PerImage
from cryoprob.inference.treatments.point import Point
from cryoprob.inference.treatments.prior import Prior


@pytest.fixture
def problem():
    return make_problem(contrast=False).continuous()


def parts(problem):
    """Treatments of the two pose sites by name."""
    rotation, shift = problem.stack.rotation, problem.stack.shift
    return {
        "known": (Known(rotation), Known(shift)),
        "exact": (Exact(), Exact()),
        "local": (Local(rotation, 30.0), Local(shift, 3.0)),
        "modal": (Modal(), Modal()),
        "polished": (Modal(polish=2), Modal(polish=2)),
        "law": (PerImage(ConcentratedLaw(), rotation), PerImage(NormalShift(3.0), shift)),
        "dirac": (PerImage(DiracRotation(), rotation), PerImage(DiracShift(3.0), shift)),
        "prior": (Prior(problem.model.rotation), Prior(problem.model.shift)),
    }


def guide(problem, rotation, shift):
    menu = parts(problem)
    pair = menu[rotation][0], menu[shift][1]
    return Guide(rotation=pair[0], shift=pair[1], volume=Point(problem.volume))


KINDS = {
    ("known", "known"): "log_evidence",
    ("exact", "exact"): "log_evidence",
    ("local", "local"): "log_evidence",
    ("modal", "modal"): "elbo",
    ("polished", "polished"): "profile_log_joint",
    ("law", "law"): "elbo",
    ("known", "law"): "elbo",
    ("law", "known"): "elbo",
    ("law", "prior"): "elbo",
    ("dirac", "dirac"): "profile_log_joint",
    ("dirac", "law"): "profile_log_joint",
    ("law", "dirac"): "profile_log_joint",
    ("known", "dirac"): "profile_log_joint",
}


@pytest.mark.parametrize("pair", KINDS, ids="-".join)
def test_what_the_nats_are_called(problem, pair):
    assert guide(problem, *pair).kind == KINDS[pair]


@pytest.mark.parametrize(
    "pair", [("exact", "known"), ("law", "exact"), ("modal", "law"), ("exact", "modal")]
)
def test_mixtures_without_an_e_step_are_refused(problem, pair):
    with pytest.raises(InputError, match="both searched, in the same way, or neither.*Use Exact"):
        guide(problem, *pair)


def test_heads_belong_to_the_rotation(problem):
    law = Heads(NormalShift(3.0), 2)
    shift = PerImage(law, problem.stack.shift)
    with pytest.raises(InputError, match="heads at the rotation only"):
        Guide(rotation=parts(problem)["law"][0], shift=shift, volume=Point(problem.volume))


def test_importance_needs_a_density(problem):
    with pytest.raises(InputError, match="one with a density"):
        Importance(parts(problem)["dirac"][0], 8)
    found = Importance(parts(problem)["law"][0], 8)
    whole = Guide(rotation=found, shift=parts(problem)["law"][1], volume=Point(problem.volume))
    assert whole.kind == "iwae"


def test_a_law_needs_a_continuous_prior():
    problem = make_problem(contrast=False)
    laws = parts(problem.continuous())["law"]
    whole = Guide(rotation=laws[0], shift=laws[1], volume=Point(problem.volume))
    with pytest.raises(InputError, match="rotation prior: expected a continuous prior"):
        e_step(problem.model, whole, problem.stack)


def test_searches_give_no_draws(problem):
    with pytest.raises(InputError, match="treatments of rotation and shift that give draws"):
        guide(problem, "exact", "exact").draw(problem.batch, 1)
    with pytest.raises(InputError, match="Run e_step"):
        guide(problem, "modal", "modal").draw(problem.batch, 1)


def test_draws_of_all_sites_are_counted_together(problem):
    rotation = PerImage(Heads(ConcentratedLaw(), 3), problem.stack.rotation)
    whole = Guide(rotation=rotation, shift=parts(problem)["law"][1], volume=Point(problem.volume))
    poses = whole.draw(problem.batch, 4)
    assert poses.rotation.shape == (12, 6, 3, 3) and poses.shift.shape == (12, 6, 2)
    torch.testing.assert_close(poses.log_weight.exp().sum(0), torch.ones(6).double())


@pytest.mark.parametrize("pair", [("known", "law"), ("law", "known"), ("dirac", "law")])
def test_a_dirac_stands_still_for_every_draw_of_the_other(problem, pair):
    poses = guide(problem, *pair).draw(problem.batch, 5)
    assert poses.rotation.shape == (5, 6, 3, 3) and poses.shift.shape == (5, 6, 2)
    torch.testing.assert_close(poses.log_weight.exp().sum(0), torch.ones(6).double())


def test_an_encoder_that_two_sites_share_looks_once(problem, monkeypatch):
    encoder = FourierMLP(8, problem.model.noise.sigma2.mean(0), width=16, layers=1).double()
    turns = Amortized(encoder, DiracRotation(), problem.stack.rotation[:1])
    moves = Amortized(encoder, DiracShift(3.0), problem.stack.shift[:1])
    whole = Guide(rotation=turns, shift=moves, volume=Point(problem.volume))
    looks = []
    real = FourierMLP.forward
    monkeypatch.setattr(FourierMLP, "forward", lambda self, x: looks.append(1) or real(self, x))
    batch = problem.batch
    whole.draw(batch, 1)
    assert len(looks) == 1
    whole.draw(batch, 1)
    assert len(looks) == 2  # parameters may have changed in between
