"""Warm starts: a network that gives a map's slices, on the images' gray scale."""

import pytest
import torch

from cryoprob.fourier.shells import shell_mean
from cryoprob.fourier.transforms import fft3
from cryoprob.inference.build import image_power
from cryoprob.inference.presets.base import Scene
from cryoprob.inference.presets.menu import load
from cryoprob.inference.schedule import Schedule
from cryoprob.inference.warm_start import imitate
from cryoprob.io.mrc import read_map
from cryoprob.io.mrc_writer import write_map
from cryoprob.metrics.fsc import fsc
from cryoprob.models.conformations.gaussian import GaussianConformation
from cryoprob.models.simulate import simulate
from cryoprob.models.volumes.coordinate_network import CoordinateNetwork
from cryoprob.particles import ParticleStack
from cryoprob.phantoms import PHANTOMS

BOX, PIXEL = 16, 6.0


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Images of a phantom, and its map a third as bright as they show it."""
    folder = tmp_path_factory.mktemp("phantom")
    generator = torch.Generator().manual_seed(5)
    volume = next(iter(PHANTOMS.values()))(BOX, PIXEL, generator)
    made = simulate(volume, PIXEL, 60, 1.0, generator, out=folder)
    shown, pixel = read_map(made.truth_map)
    write_map(folder / "dim.mrc", shown / 3, pixel)
    return made, shown.float(), str(folder / "dim.mrc")


def test_slices_of_a_map_for_every_conformation(drawn, generator):
    _, shown, _ = drawn
    power = float(shell_mean(fft3(shown).abs() ** 2)[1:6].mean()) * BOX
    net = CoordinateNetwork(BOX, 2, generator=generator, width=32, power=power)
    prior = GaussianConformation(torch.ones(2))
    start = net.start(generator)
    found = imitate(net, start, shown, prior, generator=generator)
    for z in (torch.zeros(2), torch.tensor([1.5, -1.0])):
        curve = fsc(net.density(found, z), shown)
        # what 300 steps reach; fresh weights have no correlation
        assert curve[1:3].min() > 0.9
    assert fsc(net.density(start, torch.zeros(2)), shown)[1:5].mean() < 0.5


@pytest.mark.parametrize("name", ["cryodrgn", "cryoai", "cryoposenet"])
def test_presets_begin_at_the_reference(name, drawn):
    made, shown, dim = drawn
    stack = ParticleStack.read(made.truth, need=("ctf", "rotation", "shift"))
    quick = {"width": 16, "epochs": 4.0, "batch": 16}
    plan = Schedule(**{**load(name).plan, **quick, "zdim": 2})
    kind = {"dtype": torch.float32, "device": torch.device("cpu")}
    scene = Scene(stack, plan, image_power(stack), [dim], 20.0, 1, "C1", kind)
    built = load(name).build(scene)
    built.begin()
    volume, model = built.half.guide.volume.coefficients.detach(), built.half.model
    state = None if model.conformation is None else torch.zeros(2)
    density = model.volume.density(volume, state)
    assert fsc(density, shown)[1:3].min() > 0.9
    factor = float((density * shown).sum() / shown.square().sum())
    # the images' gray scale: known poses say it well, a ladder of factors of 2^(1/2) less so
    assert 0.5 < factor < 1.6


def built_of(name, drawn, references, low_pass_A=20.0):
    stack = ParticleStack.read(drawn[0].truth, need=("ctf", "rotation", "shift"))
    plan = Schedule(**{**load(name).plan, "width": 8, "epochs": 40.0, "zdim": 2, "batch": 1})
    kind = {"dtype": torch.float32, "device": torch.device("cpu")}
    return load(name).build(
        Scene(stack, plan, image_power(stack), references, low_pass_A, 1, "C1", kind)
    )


def test_what_a_reference_changes_in_the_schedule(drawn):
    """Poses are searched before the first step; encoders of poses learn at a volume that is held."""
    first = [built_of("cryodrgn2", drawn, given).algorithm.first for given in ([], [drawn[2]])]
    assert first[0] > 0 and first[1] == 0
    held = [set(built_of("cryofire", drawn, given).algorithm.held) for given in ([], [drawn[2]])]
    assert held == [{"conformation"}, {"conformation", "volume"}]


@pytest.mark.parametrize("name", ["cryodrgn2", "cryodrgn-bnb"])
def test_the_first_search_is_in_the_band_of_the_reference(name, drawn):
    """Neither below the first band of the training, nor beyond its last."""
    stack = ParticleStack.read(drawn[0].truth)
    field, last = stack.box * stack.pixel_size, stack.box // 2 - 1
    first = built_of(name, drawn, []).algorithm.joint.first_radius
    assert first < last
    for shell, wanted in ((first / 2, first), (last - 0.5, last - 1), (2 * last, last)):
        turn = built_of(name, drawn, [drawn[2]], field / shell).algorithm
        assert turn.start_radius == max(first, wanted)


def test_without_a_reference_nothing_is_done(drawn):
    built = built_of("cryofire", drawn, [])
    before = built.half.guide.volume.coefficients.detach().clone()
    built.begin()
    assert built.half.guide.volume.coefficients.detach().equal(before)
