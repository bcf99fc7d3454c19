"""Presets of Gaussians: structures and their gray scale, phases, and what is refused."""

from dataclasses import replace

import pytest
import torch
from chains import bead_chain, write_chain
from scenes import trimmed

from cryoprob.checks import InputError
from cryoprob.inference.amplitude import regressed_amplitude
from cryoprob.inference.config import FitConfig
from cryoprob.inference.objectives.ring_correlation import concentration_of_power
from cryoprob.inference.presets.gaussians import structure
from cryoprob.inference.presets.menu import load
from cryoprob.inference.reload import scene_of, system_of
from cryoprob.inference.schedule import Schedule
from cryoprob.io.structures import density, is_structure, read_structure
from cryoprob.models.simulate import simulate
from cryoprob.particles import ParticleStack

BOX, PIXEL, COUNT = 16, 6.0, 40


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Images of a chain that lies beside the origin, which its structure says."""
    folder = tmp_path_factory.mktemp("chain")
    generator = torch.Generator().manual_seed(11)
    positions = bead_chain(30, generator) + torch.tensor([6.0, -4.0, 2.0])
    write_chain(folder / "chain.pdb", positions)
    volume = density(read_structure(folder / "chain.pdb"), BOX, PIXEL, center=False)
    return simulate(volume, PIXEL, COUNT, 4.0, generator, out=folder)


def config(drawn, name, reference="chain.pdb", trim=True, **settings):
    preset = load(name)
    quick = {"width": 6, "layers": 1, "batch": 8, "epochs": 20.0, "zdim": 2, "gaussians": 20}
    plan = Schedule(**{**preset.plan, **quick, **settings})
    path = None if reference is None else str(drawn.truth.with_name(reference))
    given = {**preset.config, "reference": path}
    fit = FitConfig(str(drawn.truth), preset=name, seed=2, schedule=plan, **given)
    return trimmed(fit) if trim else fit


def system(drawn, name, **options):
    settings = config(drawn, name, **options)
    need = ("ctf", "rotation", "shift")
    stack = ParticleStack.read(settings.particles, need=need)
    return system_of(settings, stack), stack


def test_the_gray_scale_of_a_structure(drawn):
    """Images say it, whatever the structure's own; a volume that is brighter gets less."""
    (built, stack) = system(drawn, "cryofold")
    model, volume = built.half.model, built.half.model.volume
    start = built.half.guide.volume.coefficients.detach()
    again = regressed_amplitude(model, start, stack)
    assert again == pytest.approx(1, rel=1e-4)  # float32 sums
    # the molecule explains the images about as their own map does
    zero = torch.zeros(2)
    mass = float(volume.density(start, zero).sum())
    atoms = read_structure(drawn.truth.with_name("chain.pdb"))
    truth = float(drawn.scale * density(atoms, BOX, PIXEL, center=False).sum())
    # Gaussians of other widths than scattering factors give: a few percent
    assert mass == pytest.approx(truth, rel=0.15)
    free = system(drawn, "atomvae")[0].half.model.volume
    # a ladder of factors of 2^(1/2), noise at the images' whole power
    assert 0.3 < float(free.amplitudes.sum() / volume.amplitudes.sum()) < 3


def test_what_shows_something_else_is_refused(drawn):
    built, stack = system(drawn, "cryofold")
    start = built.half.guide.volume.coefficients.detach()
    built.half.model.volume.amplitudes.mul_(-1)
    with pytest.raises(InputError, match="do not correlate"):
        regressed_amplitude(built.half.model, start, stack)


def test_structures_lie_where_poses_are_known_and_are_centered_where_not(drawn):
    stack = ParticleStack.read(drawn.truth, need=("ctf", "rotation", "shift"))
    scene = scene_of(config(drawn, "cryofold"), stack)
    there, middle = (structure(scene, docked=docked).positions for docked in (True, False))
    assert float(middle.mean(0).abs().max()) < 1e-6  # equal residues
    away = there - middle
    # PDB files have 1e-3 A
    torch.testing.assert_close(away, away[:1].expand_as(away))
    assert away[0].tolist() == pytest.approx([6, -4, 2], abs=2e-3)


@pytest.mark.parametrize("name", ["cryofold", "atomvae"])
def test_a_structure_is_needed(drawn, name):
    with pytest.raises(InputError, match="an atomic structure .* got none"):
        system(drawn, name, reference=None, trim=False)
    with pytest.raises(InputError, match=r"an atomic structure[\s\S]*truth.mrc"):
        system(drawn, name, reference="truth.mrc", trim=False)
    with pytest.raises(InputError, match="no such file"):
        system(drawn, name, reference="absent.cif.gz", trim=False)


def test_a_structure_far_away_is_refused(drawn):
    far = drawn.truth.with_name("far.pdb")
    write_chain(far, bead_chain(30, torch.Generator().manual_seed(1)) + 60.0)
    for name in ("cryofold", "e2gmm"):
        with pytest.raises(InputError, match="in the frame of the poses"):
            system(drawn, name, reference="far.pdb", trim=False)
    system(drawn, "atomvae", reference="far.pdb")


def test_names_of_structures():
    for name in ("a.pdb", "b.cif.gz", "/x/c.ENT", "d.mmcif"):
        assert is_structure(name)
    for name in ("a.mrc", "none", "pdb", "b.gz"):
        assert not is_structure(name)


def held(built):
    """Copies of what the pose-only phase holds."""
    guide = built.half.guide
    parts = [guide.volume.coefficients, *guide.conformation.head.parameters()]
    return [part.detach().clone() for part in parts]


def test_poses_alone_first(drawn):
    """Displacements and z's head keep their bytes for 40 % of the steps, and no longer."""
    built, stack = system(drawn, "atomvae", epochs=30.0)
    assert built.algorithm.steps == 150 and set(built.algorithm.held) == {"volume", "conformation"}
    before, turns = held(built), built.half.guide.rotation.head.weight.detach().clone()
    built.algorithm.step(built.state, stack)  # 50 of 60 steps of the phase
    assert all(a.equal(b) for a, b in zip(before, held(built), strict=True))
    volume, own = built.half.model.volume, before[0]
    z = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    assert volume.sites(own, z)[0].equal(volume.positions.expand(3, -1, -1))
    assert not built.half.guide.rotation.head.weight.equal(turns)
    built.algorithm.step(built.state, stack)
    assert not any(a.equal(b) for a, b in zip(before, held(built), strict=True))


def test_the_neutral_model_first(drawn):
    """In e2gmm's first phase z's encoder learns nothing; z = 0 is the neutral model throughout."""
    built, stack = system(drawn, "e2gmm", reference=None, epochs=30.0)
    guide, volume = built.half.guide, built.half.model.volume
    parts = list(guide.conformation.parameters())
    before = [part.detach().clone() for part in parts]
    built.algorithm.step(built.state, stack)
    assert all(part.equal(value) for part, value in zip(parts, before, strict=True))
    first = built.state.history[-1]["bound"]
    built.algorithm.step(built.state, stack)
    built.algorithm.step(built.state, stack)
    assert not any(part.equal(value) for part, value in zip(parts, before, strict=True))
    assert built.state.history[-1]["bound"] > first
    own, turns = guide.volume.coefficients.detach(), stack.rotation[:3].float()
    neutral = volume.neutral().slices(own[: volume.own], turns)
    torch.testing.assert_close(volume.slices(own, turns, torch.zeros(3, 2)), neutral)
    # a fixed width, a score that is no likelihood, and words that say so
    batch = stack.batch(torch.arange(3), volume.band)
    assert guide.conformation.law.fixed and guide.conformation.law.width == 0.1
    assert built.algorithm.objective(built.half.model, guide, own, batch).shape == (3,)
    assert "no likelihood" in built.finish().trust


def test_concentrations_follow_the_signal_above_the_last_rings():
    power = torch.ones(BOX // 2 + 2, dtype=torch.float64)
    power[2] = 2.0
    found = concentration_of_power(power, BOX)
    # r^2 = 1/2 of n numbers: r (n - r^2) / (1 - r^2), Banerjee et al. 2005
    count = 12  # of ring 2: (2, 0) four times, (2, 1) eight times
    root = 0.5**0.5
    assert float(found[2]) == pytest.approx(root * (count - 0.5) / 0.5)
    assert (found > 0).all() and float(found[4]) < 0.1


def test_e2gmm_from_a_structure(drawn):
    built, _ = system(drawn, "e2gmm")
    assert len(built.half.model.volume.positions) == 30
    assert built.half.model.volume.free == ("positions", "amplitudes", "widths")


def test_presets_settings_can_be_changed(drawn):
    built, _ = system(drawn, "atomvae", learn_draws=3)
    assert built.algorithm.objective.draws == 3
    mine = replace(config(drawn, "cryofold"), seed=5)
    assert mine.preset == "cryofold"
