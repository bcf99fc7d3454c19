"""Presets on a CUDA device, pretended or real: whole fits, which end as on the CPU.

Where q is drawn from, a real device draws other numbers than the CPU from the same seed, so that
numbers are compared on the pretended one alone, which has the CPU's.
"""

from dataclasses import fields

import pytest
import torch
from chains import bead_chain, write_chain
from pretend import Pretend
from scenes import trimmed

from cryoprob.inference.config import FitConfig
from cryoprob.inference.conformation_budget import conformation_budget
from cryoprob.inference.loop import Quiet
from cryoprob.inference.presets.menu import PRESETS, load
from cryoprob.inference.reload import reload
from cryoprob.inference.run import run_fit
from cryoprob.inference.schedule import Schedule
from cryoprob.io.structures import density, read_structure
from cryoprob.models.simulate import simulate

BOX, PIXEL, COUNT = 12, 8.0, 16
DRAWS = ("cryodrgn", "cryodrgn2", "cryodrgn-bnb", "cryofold", "e2gmm", "atomvae", "fstdiff")
"""Presets whose q has a density."""

QUICK = {
    "zdim": 2,
    "width": 8,
    "layers": 1,
    "gaussians": 10,
    "batch": 8,
    "epochs": 6.0,
    "coarse_order": 0,
    "max_order": 0,
    "shift_extent": 2.0,
    "max_iterations": 2,
    "learn_steps": 2,
}
NEED = {"cryofold": "chain.pdb", "atomvae": "chain.pdb"}
BOTH = {"contrast_sd": 0.2, "defocus_sd_A": 200.0, "defocus_nodes": 5}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Images of a chain whose structure lies in the frame of their poses."""
    folder, generator = tmp_path_factory.mktemp("chain"), torch.Generator().manual_seed(11)
    write_chain(folder / "chain.pdb", bead_chain(20, generator))
    volume = density(read_structure(folder / "chain.pdb"), BOX, PIXEL, center=False)
    simulate(volume, PIXEL, COUNT, 4.0, generator, out=folder)
    return folder


def config(images, name, device, reference=None, epochs=QUICK["epochs"], **settings):
    """A short fit in double precision."""
    preset = load(name)
    starts = None if preset.build else "truth.mrc"
    reference = reference or NEED.get(name, starts)
    plan = {k: v for k, v in QUICK.items() if preset.build or k not in ("zdim", "gaussians")}
    plan |= {"epochs": epochs} | ({"max_radius": 3} if name == "covariance" else {})
    given = {**preset.config, **settings}
    fit = FitConfig(
        str(images / "truth.star"),
        reference=None if reference is None else str(images / reference),
        low_pass_A=20.0,
        preset=name,
        seed=2,
        threads=1,
        device=device,
        double=True,
        schedule=Schedule(**{**preset.plan, **plan}),
        **given,
    )
    return trimmed(fit)


def tensors(value, name=""):
    """All tensors of nested dataclasses, lists and dictionaries, by where they are."""
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from tensors(part, f"{name}.{key}")
    elif isinstance(value, list | tuple):
        yield from tensors(dict(enumerate(value)), name)
    elif hasattr(value, "__dataclass_fields__"):
        yield from tensors({f.name: getattr(value, f.name) for f in fields(value)}, name)


def agree(ours, theirs, close):
    """Assert that two fits gave the same in the CPU's memory; numbers too unless that is None."""
    parts = (dict(tensors(vars(one))) for one in (ours, theirs))
    found, wanted = ({k: v for k, v in part.items() if ".fitted" not in k} for part in parts)
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        assert value.device.type == "cpu" and value.shape == wanted[name].shape, name
        if close is not None:
            torch.testing.assert_close(
                value, wanted[name], rtol=close, atol=close, equal_nan=True, msg=name
            )
    ends = (one.history[-1]["bound"] for one in (ours, theirs))
    assert close is None or next(ends) == pytest.approx(next(ends), rel=close)


def tolerance(name, device_has_the_cpus_draws):
    """What rounding may come to; None where draws differ."""
    if name in DRAWS and not device_has_the_cpus_draws:
        return None
    # conjugate gradients on an ill-posed problem; or a few steps, which make rounding larger
    return 1e-2 if name == "covariance" else 1e-6


def alike(images, name, out, **settings):
    """A fit there and one here, compared; gives the former."""
    found, wanted = (
        run_fit(config(images, name, word, **settings), out / word) for word in ("cuda", "cpu")
    )
    guide = found.fitted.guide
    parts = [*guide.parameters(), *guide.buffers(), *found.fitted.model.buffers()]
    assert all(part.is_cuda for part in parts)
    agree(found, wanted, tolerance(name, isinstance(parts[0], Pretend)))
    return found


QUICK_ONES = ("cryodrgn", "cryodrgn2", "cryofold", "cryoai", "cryoposenet", "e2gmm", "ppca")
SOME = [
    pytest.param(name, marks=() if name in QUICK_ONES else pytest.mark.slow) for name in PRESETS
]


@pytest.mark.parametrize("name", SOME)
def test_a_fit(name, images, device, tmp_path):
    alike(images, name, tmp_path)


SLOW = [
    pytest.param(name, marks=pytest.mark.slow)
    for name in ("cryodrgn-bnb", "cryofire", "cryoposenet", "atomvae", "relion-refine3d")
]


@pytest.mark.parametrize("name", ["cryodrgn", "cryodrgn2", "cryofold", "cryoai", *SLOW])
def test_contrast_and_defocus(name, images, device, tmp_path):
    found = alike(images, name, tmp_path, **BOTH)
    assert all(len(part) == COUNT for part in found.imaging.columns().values())


STARTS = ["cryodrgn", "cryodrgn2", "cryoposenet", "cryofire", "3dva"]


@pytest.mark.slow
@pytest.mark.parametrize("name", STARTS)
def test_from_a_map(name, images, device, tmp_path):
    alike(images, name, tmp_path, reference="truth.mrc")


@pytest.mark.slow
def test_gaussians_from_a_structure(images, device, tmp_path):
    alike(images, "e2gmm", tmp_path, reference="chain.pdb")


class Stopper(Quiet):
    """Stops a run at its second record."""

    def step(self, record):
        if record["iteration"] == 2:
            raise KeyboardInterrupt


@pytest.mark.parametrize("name", ["cryodrgn", "cryodrgn2", "cryoai", "ppca"])
def test_a_fit_goes_on_and_is_taken_up_again(name, images, device, tmp_path):
    settings = config(images, name, "cuda", epochs=30.0)  # two records of 50 and 10 steps
    whole = run_fit(settings, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run_fit(settings, tmp_path / "cut", observer=Stopper())
    agree(run_fit(settings, tmp_path / "cut", resume=True), whole, 1e-6)
    half, left = reload(tmp_path / "cut")[0].half, whole.fitted
    for found, wanted in zip(half.guide.parameters(), left.guide.parameters(), strict=True):
        assert found.is_cuda
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["cryodrgn", "cryodrgn2"])
def test_what_a_conformation_costs(name, images, device, tmp_path):
    """A reloaded fit's budget; the draws of z are the device's own."""
    budgets = []
    for word in ("cuda", "cpu"):
        settings = config(images, name, word)
        run_fit(settings, tmp_path / word)
        built, stack = reload(tmp_path / word)
        how = {"order": 0, "nodes": 3, "seed": 1, "objective": built.objective}
        index = torch.arange(0, COUNT, 4)
        budgets.append(conformation_budget(built.half, stack, index, settings.schedule, **how))
    found, wanted = ([b.evidence, b.bound, b.conformation, b.error, b.pose] for b in budgets)
    assert all(part.is_cuda for part in found)
    if isinstance(found[0], Pretend):
        for ours, theirs in zip(found, wanted, strict=True):
            torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-6, atol=1e-6)
