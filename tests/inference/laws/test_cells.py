"""The mixture over cells of the rotation grid."""

import pytest
import roma
import torch
from problems import make_problem
from rotation_laws import fit, mass

from cryoprob.checks import InputError
from cryoprob.geometry.grids import RotationGrid
from cryoprob.geometry.rotations import about_z, angle_between, random_rotations
from cryoprob.inference.guide import Guide
from cryoprob.inference.laws.cells import Cells
from cryoprob.inference.laws.shifts import NormalShift
from cryoprob.inference.objectives.elbo import Elbo
from cryoprob.inference.treatments.per_image import PerImage
from cryoprob.inference.treatments.point import Point

F64 = torch.float64


def rotations(count, seed=5):
    return random_rotations(count, torch.Generator().manual_seed(seed), F64)


def some_numbers(law, generator, *batch):
    return torch.randn(*batch, law.size, generator=generator, dtype=F64)


def one_cell(law, cell, offset=(0.0, 0.0, 0.0), scale=0.0):
    """Numbers of all weight on a cell (of the law's order)."""
    parts = torch.zeros(len(law.grid), 5, dtype=F64)
    parts[:, 0] = -1e3
    parts[cell] = torch.tensor([0.0, *offset, scale], dtype=F64)
    return parts.flatten()


def test_density_is_normalized(generator):
    law = Cells(0)
    # half widths of about 15 degrees on cells of 7.5: the midpoint rule errs by less than 3e-3
    assert mass(law(some_numbers(law, generator))) == pytest.approx(1, abs=5e-3)


def test_density_is_normalized_on_a_finer_grid(generator):
    law = Cells(1, width_deg=50.0)
    points = RotationGrid(2).matrices(dtype=F64)
    found = law.log_score(some_numbers(law, generator), points).exp().mean()
    # half widths of about 25 degrees on cells of 15
    assert float(found) == pytest.approx(1, abs=1e-2)


@pytest.mark.parametrize("dof", [1, 2, 8, 30])
def test_one_cell_is_normalized_wherever_its_mode_is(dof):
    """By its angle alone: the density is a function of the angle from the mode."""
    law = Cells(0, width_deg=3.0, dof=dof)
    spread = law(one_cell(law, 17, (1.0, -0.7, 0.4)))
    mode = spread.modes(torch.tensor(17))
    angle = torch.linspace(0, torch.pi, 20001, dtype=F64)
    axis = torch.nn.functional.normalize(torch.tensor([1.0, 2.0, -0.5], dtype=F64), dim=0)
    density = spread.log_prob(roma.rotvec_to_rotmat(angle[:, None] * axis) @ mode).exp()
    haar = (1 - angle.cos()) / torch.pi
    # the trapezoidal rule in steps of 0.009 degrees over a peak of 3
    assert float(torch.trapezoid(density * haar, angle)) == pytest.approx(1, abs=1e-4)


def test_uniform_at_the_widest(generator):
    law = Cells(0, dof=1)
    numbers = some_numbers(law, generator).unflatten(-1, (-1, 5))
    numbers[..., 4] = 50.0
    assert law(numbers.flatten()).log_prob(rotations(20)).abs().max() < 1e-9


def test_draws_follow_the_density(generator, false_alarm):
    law = Cells(0)
    assert fit(law(some_numbers(law, generator))) > false_alarm


@pytest.mark.parametrize("dof", [1, 8])
def test_draws_of_a_cell_follow_its_density(dof, false_alarm):
    law = Cells(0, width_deg=60.0, dof=dof)
    assert fit(law(one_cell(law, 31, (0.8, 0.2, -1.0)))) > false_alarm


def test_numbers_put_the_mode_at_the_value():
    law, value = Cells(1), rotations(50)
    numbers = law.numbers(value)
    assert float(angle_between(law.mode(numbers), value).max()) < 1e-5
    offsets = numbers.unflatten(-1, (-1, 5))[..., 1:4].abs().amax()
    assert 0.5 < float(offsets) < 3  # in units of half a spacing; corners lie farther out


def test_centers_are_the_grids():
    law = Cells(1)
    modes = law(torch.zeros(law.size, dtype=F64)).modes(torch.arange(len(law.grid)))
    psi, direction = torch.arange(len(law.grid)).view(12, 48).unbind(1)[0], torch.arange(48)
    places = direction[None] * 12 + (psi // 48)[:, None]
    assert torch.allclose(modes, RotationGrid(1).matrices(places.flatten(), F64), atol=1e-9)


def test_turning_in_the_plane_moves_parts(generator):
    """An image turned by one in-plane step has the same numbers, one position on."""
    law, value = Cells(1), rotations(6)
    numbers = some_numbers(law, generator, 6)
    moved = numbers.view(6, law.grid.n_psi, -1).roll(1, 1).flatten(1)
    turned = about_z(torch.tensor(law.grid.spacing_deg, dtype=F64)) @ value
    assert torch.allclose(law.log_score(moved, turned), law.log_score(numbers, value))


def test_draws_are_of_the_cut_law(generator):
    law = Cells(0, heads=5)
    numbers = some_numbers(law, generator, 3)
    drawn = law.draw(numbers, 4)
    assert drawn.value.shape == (20, 3, 3, 3)
    assert torch.allclose(drawn.log_weight.exp().sum(0), torch.ones(3, dtype=F64))
    parts = numbers.unflatten(-1, (-1, 5)).clone()
    heavy = parts[..., 0].topk(5, -1).indices
    keep = torch.zeros(3, 72, dtype=torch.bool).scatter(-1, heavy, True)
    parts[..., 0] = torch.where(keep, parts[..., 0], -torch.inf)
    assert torch.allclose(drawn.log_q, law.log_score(parts.flatten(-2), drawn.value))


def test_modal_draws_are_modes(generator):
    law = Cells(0, heads=3, modal=True)
    drawn = law.draw(some_numbers(law, generator, 4), 7)
    assert drawn.value.shape == (3, 4, 3, 3)
    assert not law.has_density
    assert torch.equal(drawn.log_q, drawn.log_weight)


def test_gradients(generator):
    """Of a bound with the same noise, against differences: weights, offsets and widths."""
    problem = make_problem(n=2, contrast=False).continuous()
    law = Cells(0, heads=4)
    rotation = PerImage(law, problem.stack.rotation)
    rotation.numbers.data = some_numbers(law, generator, 2)
    shift = PerImage(NormalShift(4.0), problem.stack.shift)
    guide = Guide(rotation=rotation, shift=shift, volume=Point(problem.volume))

    def value():
        with torch.random.fork_rng():
            torch.manual_seed(6)
            return Elbo(2)(problem.model, guide, problem.volume, problem.batch).sum()

    (found,) = torch.autograd.grad(value(), rotation.numbers)
    heavy = int(rotation.numbers[0].detach().view(-1, 5)[:, 0].argmax())
    step = 1e-6
    for part in range(5):
        place, ends = 5 * heavy + part, []
        for sign in (1, -1):
            with torch.no_grad():
                rotation.numbers[0, place] += sign * step
                ends.append(value())
                rotation.numbers[0, place] -= sign * step
        slope = float(ends[0] - ends[1]) / (2 * step)
        # slices are linear between grid points: a kink within a step of 1e-6 is rare, not none
        assert float(found[0, place]) == pytest.approx(slope, rel=1e-4, abs=1e-4)


def test_single_precision(generator):
    """Near the narrowest width: what double precision says, to a thousandth."""
    law = Cells(1)
    value = rotations(30)
    numbers = law.numbers(value).view(30, -1, 5)
    numbers[..., 4] = -5.0
    near = value @ roma.rotvec_to_rotmat(2e-3 * torch.randn(30, 3, generator=generator, dtype=F64))
    wanted = law.log_score(numbers.flatten(1), near)
    found = law.log_score(numbers.flatten(1).float(), near.float())
    assert torch.allclose(found.double(), wanted, atol=1e-2)


@pytest.mark.parametrize("bad", [{"heads": 0}, {"heads": 73}, {"width_deg": 90.0}, {"dof": 0}])
def test_impossible_laws(bad):
    with pytest.raises(InputError):
        Cells(0, **bad)


def test_the_density_of_what_is_drawn():
    """log_density is that of the law cut to the heaviest cells, as draw gives it, for any values."""
    generator = torch.Generator().manual_seed(5)
    law = Cells(0, heads=3)
    numbers = torch.randn(4, law.size, generator=generator, dtype=torch.float64)
    torch.manual_seed(2)
    drawn = law.draw(numbers, 2)
    found = law.log_density(numbers, drawn.value.transpose(0, 1))
    torch.testing.assert_close(found.T, drawn.log_q)
    values = random_rotations(7, generator, torch.float64)
    common = law.log_density(numbers, values)
    each = law.log_density(numbers, values.expand(4, 7, 3, 3))
    torch.testing.assert_close(common, each)
