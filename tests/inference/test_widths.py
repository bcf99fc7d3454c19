"""What a fit tells of the widths of its poses: nothing where q has none."""

import pytest
import torch
import xarray

from cryoprob.inference.config import FitConfig
from cryoprob.inference.fit import fit
from cryoprob.inference.guide import Guide
from cryoprob.inference.joint_finish import summary_at
from cryoprob.inference.laws.shifts import NormalShift
from cryoprob.inference.run import run_fit
from cryoprob.inference.schedule import Schedule
from cryoprob.inference.treatments.known import Known
from cryoprob.inference.treatments.per_image import PerImage
from cryoprob.inference.treatments.point import Point
from cryoprob.io.mrc import read_map
from cryoprob.io.tables import read_particles, write_particles
from cryoprob.models.noises.radial_noise import RadialNoise
from cryoprob.models.particle_model import ParticleModel
from cryoprob.models.poses.gaussian_shift import GaussianShift
from cryoprob.models.poses.uniform_rotation import UniformRotation
from cryoprob.models.simulate import simulate
from cryoprob.models.volumes.fourier_voxels import FourierVoxels
from cryoprob.particles import ParticleStack
from cryoprob.phantoms import bead_walk

COUNT, PIXEL_SIZE = 12, 8.0
COLUMNS = ("rlnMaxValueProbDistribution", "cryoprobPoseEntropy")
PLAN = Schedule(
    max_iterations=1,
    max_order=1,
    coarse_order=1,
    beam=4,
    learn_steps=1,
    warm_steps=2,
    batch=6,
)


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    """Images whose table has the columns already, as an earlier fit had left them."""
    folder = tmp_path_factory.mktemp("stack")
    generator = torch.Generator().manual_seed(7)
    made = simulate(
        bead_walk(20, 16, PIXEL_SIZE, generator), PIXEL_SIZE, COUNT, 1.0, generator, out=folder
    )
    for path in (made.particles, made.truth):
        extra = {name: torch.full((COUNT,), 0.25) for name in COLUMNS}
        write_particles(path, read_particles(path), extra=extra)
    return made


@pytest.mark.parametrize(
    ("family", "told"),
    [
        ("exact-em", (True, True)),
        ("modal-em", (False, False)),  # Diracs at the best pose of a search
        ("amortized-modal", (False, False)),  # and at what an encoder says
        ("svi", (False, True)),  # a law has an entropy, but no cells
    ],
)
def test_only_what_q_has_is_told(experiment, tmp_path, family, told):
    config = FitConfig(
        str(experiment.particles), family, str(experiment.truth_map), seed=3, schedule=PLAN
    )
    result = run_fit(config, tmp_path / "fit")
    table = read_particles(tmp_path / "fit" / "particles.star")
    assert tuple(map(table.columns.has, COLUMNS)) == told
    with xarray.open_dataset(
        tmp_path / "fit" / "posterior.nc", group="sample_stats", engine="h5netcdf"
    ) as stats:
        assert tuple(name in stats for name in ("max_probability", "entropy")) == told
    for name, values in result.posterior.widths().items():
        column = table.columns.numbers(COLUMNS[0] if name == "probability" else COLUMNS[1])
        assert torch.from_numpy(column).float().allclose(values.float(), atol=1e-5)
    assert "undecided" not in result.trust or family == "exact-em"


def test_given_poses_keep_what_their_file_says(experiment, tmp_path):
    config = FitConfig(str(experiment.truth), poses="known", seed=3, schedule=PLAN)
    result = run_fit(config, tmp_path / "fit")
    assert result.posterior.widths() == {}
    table = read_particles(tmp_path / "fit" / "particles.star")
    assert all((table.columns.numbers(name) == 0.25).all() for name in COLUMNS)


def test_a_law_of_shifts_at_given_rotations_has_an_entropy_alone(experiment, tmp_path):
    stack = ParticleStack.read(experiment.truth)
    noise = RadialNoise(torch.ones(1, stack.box // 2 + 2))
    priors = UniformRotation(), GaussianShift(8.0), noise
    model = ParticleModel(FourierVoxels(stack.box), *priors, PIXEL_SIZE)
    turns, moves = stack.rotation.float(), PerImage(NormalShift(2.0), stack.shift.float())
    start = Point(read_map(experiment.truth_map)[0])
    guide = Guide(rotation=Known(turns), shift=moves, volume=start)
    result = fit(model, guide, stack, seed=1, schedule=PLAN)
    assert set(result.posterior.widths()) == {"entropy"}
    result.save(tmp_path, stack)
    columns = read_particles(tmp_path / "particles.star").columns
    assert tuple(map(columns.has, COLUMNS)) == (False, True)
    assert not (columns.numbers(COLUMNS[1]) == 0.25).any()


def test_modes_alone_have_no_widths():
    found = summary_at(torch.zeros(3).double(), torch.eye(3).expand(3, 3, 3), torch.zeros(3, 2))
    assert found.widths() == {} and found.take(torch.tensor([1])).widths() == {}
    assert (found.energy == 0).all()
