"""What encoders see, what they remember, and how features move with the image."""

from dataclasses import replace

import pytest
import torch
from problems import PIXEL_SIZE, make_problem, some_map
from scipy import stats

from cryoprob.checks import InputError
from cryoprob.fourier.bands import full_band
from cryoprob.geometry.rotations import about_z, random_rotations
from cryoprob.inference.encoders.centering import Centering
from cryoprob.inference.encoders.convolutional import Convolutional
from cryoprob.inference.encoders.fourier_mlp import FourierMLP
from cryoprob.inference.encoders.polar import Polar
from cryoprob.inference.guide import Guide
from cryoprob.inference.laws.cells import Cells
from cryoprob.inference.laws.rotations import ConcentratedLaw
from cryoprob.inference.laws.shifts import NormalShift, TurningShift
from cryoprob.inference.objectives.elbo import Elbo
from cryoprob.inference.objectives.sleep import Sleep
from cryoprob.inference.treatments.amortized import Amortized
from cryoprob.inference.treatments.known import Known
from cryoprob.inference.treatments.point import Point
from cryoprob.models.image_likelihood import shift_phase
from cryoprob.models.volumes.fourier_voxels import FourierVoxels
from cryoprob.noise import RadialNoise

F64 = torch.float64
BUILDS = {
    "convolutional": lambda box, sigma2, **more: Convolutional(
        box, sigma2, channels=8, size=12, **more
    ),
    "fourier_mlp": lambda box, sigma2, **more: FourierMLP(box, sigma2, width=16, layers=2, **more),
    "polar": lambda box, sigma2, **more: Polar(box, sigma2, order=0, channels=8, layers=1, **more),
}
NAMES = pytest.mark.parametrize("name", BUILDS)


def seeded(build, *given, **more):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return build(*given, **more)


def spectrum(box, seed=2):
    generator = torch.Generator().manual_seed(seed)
    return 0.5 + torch.rand(box // 2 + 2, generator=generator, dtype=F64)


def crossing(batch, generator):
    """The batch with a CTF of either sign."""
    values = 2 * torch.rand(batch.ctf.shape, generator=generator, dtype=F64) - 1
    return replace(batch, ctf=values)


def mlp(sigma2, **more):
    return seeded(FourierMLP, 6, sigma2, width=8, layers=1, **more).double()


@pytest.fixture(scope="module")
def problem():
    return make_problem(n=5, groups=1, contrast=False).continuous()


def test_noise_is_whitened(problem, generator, false_alarm):
    """Unit variance in every number, whatever the spectrum and the sign of the CTF."""
    sigma2 = spectrum(8)
    noise = RadialNoise(sigma2, 8).sample((4000,), generator=generator)
    encoder, batch = mlp(sigma2), crossing(problem.batch, generator)
    image = full_band(8).pack(noise)
    many = replace(batch, image=image, ctf=batch.ctf[:1].expand(4000, -1))
    numbers = torch.view_as_real(encoder.prepare(many))[:, 1:].flatten(1)  # not the mean
    spread = numbers.square().sum(0)
    tails = stats.chi2(4000).cdf(spread.numpy())
    least = false_alarm / (2 * len(spread))
    assert tails.min() > least
    assert tails.max() < 1 - least


@pytest.mark.parametrize("matched", [False, True])
def test_phases_are_flipped(problem, matched, generator):
    """A noiseless image comes out as slice times |CTF| (its square, if matched) over the noise."""
    sigma2, batch = spectrum(8), crossing(problem.batch, generator)
    encoder = mlp(sigma2, matched=matched)
    inside = len(encoder.band)
    clean = torch.ones_like(batch.image)
    seen = encoder.prepare(replace(batch, image=batch.ctf * clean))
    ctf = batch.ctf[:, :inside].abs()
    wanted = ctf.square() if matched else ctf
    gain = sigma2[encoder.band.shell].rsqrt()
    assert torch.allclose(seen, (wanted * gain).to(seen))


def test_centering_undoes_the_shift(problem):
    batch, sigma2 = problem.batch, spectrum(8)
    shift = problem.stack.shift
    moved = replace(batch, image=batch.image * shift_phase(batch.band, shift, PIXEL_SIZE))
    centering = Centering(Known(shift), PIXEL_SIZE)
    seen = mlp(sigma2, centering=centering).prepare(moved)
    assert torch.allclose(seen, mlp(sigma2).prepare(batch))


def test_centering_leaves_the_shift_its_gradients(problem):
    """The memory of the shift's encoder holds a graph, even if the rotation looks first."""
    sigma2 = spectrum(8)
    shift = Amortized(mlp(sigma2), NormalShift(4.0), torch.zeros(1, 2, dtype=F64))
    encoder = mlp(sigma2, centering=Centering(shift, PIXEL_SIZE))
    rotation = Amortized(encoder, ConcentratedLaw(), problem.stack.rotation[:1])
    guide = Guide(rotation=rotation, shift=shift, volume=Point(problem.volume))
    known = problem.stack.rotation, problem.stack.shift
    guide.log_score(problem.batch, *known).sum().backward()
    assert shift.encoder.first.weight.grad.abs().sum() > 0
    guide.zero_grad()
    guide.forget()
    rotation.law.log_score(rotation.numbers_of(problem.batch), known[0]).sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in shift.parameters())


@NAMES
def test_a_batch_is_looked_at_once(name, problem):
    encoder = seeded(BUILDS[name], 8, spectrum(10)).double()
    batch = make_problem(box=10, n=3, contrast=False).batch
    first = encoder.look(batch)
    assert encoder.look(batch) is first
    other = encoder.look(replace(batch, image=2 * batch.image))
    assert not torch.allclose(other, first)
    again = encoder.look(batch)
    encoder.forget()
    assert encoder.look(batch) is not again
    assert torch.equal(encoder.look(batch), first)
    positions = (encoder.positions,) * (encoder.positions > 1)
    assert first.shape == (3, *positions, encoder.size)


@NAMES
def test_images_do_not_mix(name):
    encoder = seeded(BUILDS[name], 8, spectrum(10)).double()
    batch = make_problem(box=10, n=3, contrast=False).batch
    ready = encoder.prepare(batch)
    each = torch.cat([encoder(row[None]) for row in ready])
    assert torch.allclose(encoder(ready), each)


@NAMES
def test_low_precision(name):
    """About the same features, of the images' own type."""
    sigma2 = spectrum(10).float()
    batch = make_problem(box=10, n=4, contrast=False, dtype=torch.float32).batch
    exact = seeded(BUILDS[name], 8, sigma2)
    fast = seeded(BUILDS[name], 8, sigma2, precision=torch.bfloat16)
    fast.load_state_dict(exact.state_dict())
    wanted, found = exact.look(batch), fast.look(batch)
    assert found.dtype == torch.float32
    # eight bits of mantissa, and a few layers
    assert (found - wanted).norm() < 0.05 * wanted.norm()


@pytest.mark.parametrize("box", [2, 7, 18])
def test_impossible_boxes(box):
    with pytest.raises(InputError, match="encoder box"):
        FourierMLP(box, torch.ones(10))


def test_bands_that_are_too_small(problem):
    encoder = mlp(spectrum(8))
    small = problem.stack.batch(torch.arange(2), full_band(8).prefix(1), dtype=F64)
    with pytest.raises(InputError, match="at least"):
        encoder.prepare(small)


def turned_slices(box, angles):
    """Slices of a map at one view, turned in the plane."""
    volume = some_map(box, torch.Generator().manual_seed(4))
    rotation = random_rotations(1, torch.Generator().manual_seed(9), F64)
    voxels = FourierVoxels(box, radius=box // 2 - 1, dtype=F64)
    return voxels.slices(volume, about_z(angles) @ rotation)


def test_polar_features_turn_with_the_image():
    box, ideal = 16, torch.ones(10, dtype=F64)
    encoder = seeded(Polar, box, ideal, order=0, channels=8, layers=2, finer=1).double()
    slices = turned_slices(box, torch.tensor([0.0, 60.0, 180.0], dtype=F64))
    with torch.no_grad():
        found = encoder(slices)
    for row, step in ((1, 1), (2, 3)):
        wanted = found[0].roll(step, 0)
        change = (found[row] - wanted).norm() / wanted.norm()
        still = (found[0] - wanted).norm() / wanted.norm()
        # the slices' own linear interpolation, and the window, which is cut from square pixels
        assert float(change) < 0.1 < 0.3 < float(still)


def test_turned_images_have_turned_poses():
    """Encoder and laws together: density and mean shift go with the image."""
    box, angle = 16, torch.tensor([0.0, 60.0], dtype=F64)
    encoder = seeded(Polar, box, torch.ones(10, dtype=F64), order=0, channels=8, finer=1).double()
    place = random_rotations(1, torch.Generator().manual_seed(1), F64)
    moves = seeded(Amortized, encoder, TurningShift(0, 4.0), torch.zeros(1, 2, dtype=F64))
    turns = seeded(Amortized, encoder, Cells(0), place)
    with torch.no_grad():
        features = encoder(turned_slices(box, angle)).detach()
        shift = moves.law.mode(5 * moves.head(features).flatten(1))
        score = turns.law.log_score(turns.head(20 * features).flatten(1), about_z(angle) @ place)
    turn = about_z(angle[1])[:2, :2]
    assert torch.allclose(shift[1], turn @ shift[0], atol=0.1 * float(shift.norm()))
    assert float(score[0]) == pytest.approx(float(score[1]), abs=0.15)  # as the features


def test_polar_templates_are_turned_filters():
    encoder = seeded(Polar, 10, torch.ones(10), order=0, channels=3, layers=0)
    templates = encoder.templates().unflatten(0, (-1, 3))
    assert templates.shape == (12, 3, 2 * len(encoder.band))
    half = templates.unflatten(-1, (-1, 2))
    # by 180 degrees: complex conjugates, as the transforms of real images are
    conjugate = half[:6] * torch.tensor([1.0, -1.0])
    assert torch.allclose(half[6:], conjugate, atol=1e-5)


def test_laws_without_positions_are_refused():
    encoder = seeded(Polar, 10, torch.ones(10), order=0, channels=4, layers=0)
    start = random_rotations(1, torch.Generator().manual_seed(1), torch.float32)
    with pytest.raises(InputError, match="like parts"):
        Amortized(encoder, ConcentratedLaw(), start)
    assert Amortized(encoder, Cells(0), start).head.out_features == 60


@pytest.mark.parametrize("name", ["polar", "fourier_mlp"])
def test_learns_from_the_models_draws(name):
    """From indifference to many times the uniform density, in a few hundred steps."""
    problem = make_problem(n=64, groups=1, contrast=False, signal=6.0, dtype=torch.float32)
    problem = problem.continuous()
    sigma2 = problem.model.noise.sigma2[0]
    rotation = Amortized(seeded(BUILDS[name], 6, sigma2), Cells(0), torch.eye(3)[None])
    shift = Known(problem.stack.shift.float())
    guide = Guide(rotation=rotation, shift=shift, volume=Point(problem.volume))
    optimizer = torch.optim.Adam(rotation.parameters(), lr=1e-2)
    scores, objective = [], Sleep()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for _ in range(150):
            loss = -objective(problem.model, guide, problem.volume, problem.batch).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scores.append(-float(loss.detach()))
    # the uniform law scores 0; nats at the end, over the noise of 10 batches
    assert sum(scores[-10:]) / 10 > max(scores[0], 0) + 0.5


def test_bounds_from_cells(problem):
    """Draws of an encoder's cells serve the ELBO like any other law's."""
    sigma2 = problem.model.noise.sigma2[0]
    encoder = seeded(Polar, 6, sigma2, order=0, channels=4, layers=1).double()
    guide = Guide(
        rotation=Amortized(encoder, Cells(0, heads=4), problem.stack.rotation[:1]),
        shift=Amortized(mlp(sigma2), NormalShift(4.0), torch.zeros(1, 2, dtype=F64)),
        volume=Point(problem.volume),
    )
    assert guide.kind == "elbo"
    found = Elbo(2)(problem.model, guide, problem.volume, problem.batch)
    assert found.shape == (5,)
    found.sum().backward()
    assert encoder.filters.grad.abs().sum() > 0
