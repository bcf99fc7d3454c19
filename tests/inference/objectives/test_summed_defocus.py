"""Objectives by draws that sum over the nodes of the defocus."""

import pytest
import torch
from imaged import CONTRAST, DEFOCUS_A, F64, imaged_model, make_imaged
from pyro.infer import TraceEnum_ELBO

from cryoprob.inference.laws.scalars import NormalScalar
from cryoprob.inference.learn import seeded
from cryoprob.inference.objectives.elbo import Elbo
from cryoprob.inference.objectives.iwae import Iwae
from cryoprob.inference.treatments.exact import Exact
from cryoprob.inference.treatments.known import Known
from cryoprob.inference.treatments.per_image import PerImage
from cryoprob.models.gaussian_contrast import GaussianContrast
from cryoprob.models.gaussian_defocus import GaussianDefocus


@pytest.fixture(scope="module")
def few():
    return make_imaged(n=4, power=400.0)


def test_objectives_sum_over_the_nodes_of_the_defocus(few):
    """At the same draws of the contrast: as the sum of what each node gives by itself."""
    prior = GaussianDefocus(DEFOCUS_A, 5, F64)
    model = imaged_model(16, GaussianContrast(CONTRAST, F64), prior)
    law = PerImage(NormalScalar(0.02, 0.05), torch.ones(4, dtype=F64))
    summed = few.guide(contrast=law, defocus=Exact())
    assert summed.kind == "elbo" and summed.draw(few.batch, 2).defocus is None
    for objective in (Elbo(1), Elbo(1, 0.5), Iwae(1)):
        each = []
        for node in prior.points:
            guide = few.guide(contrast=law, defocus=Known(node.expand(4)))
            with seeded(5):
                each.append(objective(model, guide, few.volume, few.batch))
        wanted = torch.logsumexp(torch.stack(each) + prior.log_mass[:, None], 0)
        with seeded(5):
            found = objective(model, summed, few.volume, few.batch)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-8)  # float64, thousand nats
    with seeded(6):
        Elbo(3)(model, summed, few.volume, few.batch).sum().backward()
    assert float(law.numbers.grad.abs().min()) > 0


def test_nothing_drawn_is_pyros_enumeration(few):
    model = imaged_model(16, GaussianContrast(CONTRAST, F64), GaussianDefocus(300.0, 5, F64))
    guide = few.guide(contrast=Known(few.contrast), defocus=Exact())
    found = float(Elbo()(model, guide, few.volume, few.batch).sum().detach())
    trace = -TraceEnum_ELBO(max_plate_nesting=1).loss(model, guide, few.batch)
    priors = model.volume.prior().log_prob(few.volume)  # has no part in objectives
    values = {"rotation": few.poses[0], "shift": few.poses[1], "contrast": few.contrast}
    for site, value in values.items():
        priors = priors + model.local_priors[site].prior().log_prob(value).sum()
    # nor have priors of what is given; float64, some thousand nats
    assert found == pytest.approx(trace - float(priors), rel=1e-12)
