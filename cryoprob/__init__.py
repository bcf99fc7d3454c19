"""Cryo-EM single-particle reconstruction as probabilistic programming, on Pyro and PyTorch.

    import cryoprob as cp

    result = cp.run_fit(cp.FitConfig("particles.star", seed=1), "run1")

Names are loaded when they are used (PEP 562), so that importing the package needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cryoprob.checks import DataWarning, InputError, OutputError
    from cryoprob.geometry.grids import RotationGrid
    from cryoprob.geometry.shifts import ShiftGrid
    from cryoprob.inference.config import FitConfig
    from cryoprob.inference.e_step import e_step
    from cryoprob.inference.evidence import budget
    from cryoprob.inference.families import family
    from cryoprob.inference.fit import fit as fit
    from cryoprob.inference.guide import Guide
    from cryoprob.inference.model_comparison import held_out, loo
    from cryoprob.inference.result import FitResult
    from cryoprob.inference.run import run_fit
    from cryoprob.inference.schedule import Schedule
    from cryoprob.inference.treatments.amortized import Amortized
    from cryoprob.inference.treatments.bounded import Bounded
    from cryoprob.inference.treatments.conditional_gaussian import ConditionalGaussian
    from cryoprob.inference.treatments.exact import Exact
    from cryoprob.inference.treatments.gaussian_volume import GaussianVolume
    from cryoprob.inference.treatments.importance import Importance
    from cryoprob.inference.treatments.known import Known
    from cryoprob.inference.treatments.local import Local
    from cryoprob.inference.treatments.modal import Modal
    from cryoprob.inference.treatments.per_image import PerImage
    from cryoprob.inference.treatments.point import Point
    from cryoprob.inference.treatments.prior import Prior
    from cryoprob.inference.treatments.proposed import Proposed
    from cryoprob.inference.volume_draws import draw_volumes
    from cryoprob.io.mrc import read_map, write_map
    from cryoprob.io.structures import density, read_structure
    from cryoprob.io.tables import read_particles, write_particles
    from cryoprob.metrics.alignment import align_maps
    from cryoprob.metrics.fsc import fsc, half_map_fsc, resolution
    from cryoprob.metrics.pose_error import pose_error
    from cryoprob.models.gaussian_contrast import GaussianContrast
    from cryoprob.models.gaussian_defocus import GaussianDefocus
    from cryoprob.models.noises.radial_noise import RadialNoise
    from cryoprob.models.particle_model import ParticleModel
    from cryoprob.models.poses.gaussian_shift import GaussianShift
    from cryoprob.models.poses.uniform_rotation import UniformRotation
    from cryoprob.models.simulate import Microscope, simulate
    from cryoprob.models.volumes.coordinate_network import CoordinateNetwork
    from cryoprob.models.volumes.fourier_voxels import FourierVoxels
    from cryoprob.models.volumes.gaussian_mixture import GaussianMixture
    from cryoprob.models.volumes.linear_modes import LinearModes
    from cryoprob.models.volumes.real_voxels import RealVoxels
    from cryoprob.optics import Optics, ctf
    from cryoprob.particles import Batch, ParticleStack
    from cryoprob.phantoms import PHANTOMS

_HOMES = {
    "cryoprob.checks": "DataWarning InputError OutputError",
    "cryoprob.geometry.grids": "RotationGrid",
    "cryoprob.geometry.shifts": "ShiftGrid",
    "cryoprob.inference.config": "FitConfig",
    "cryoprob.inference.e_step": "e_step",
    "cryoprob.inference.families": "family",
    "cryoprob.inference.evidence": "budget",
    "cryoprob.inference.treatments.modal": "Modal",
    "cryoprob.inference.treatments.per_image": "PerImage",
    "cryoprob.inference.treatments.amortized": "Amortized",
    "cryoprob.inference.treatments.importance": "Importance",
    "cryoprob.inference.treatments.prior": "Prior",
    "cryoprob.inference.treatments.proposed": "Proposed",
    "cryoprob.inference.model_comparison": "held_out loo",
    "cryoprob.inference.volume_draws": "draw_volumes",
    "cryoprob.inference.guide": "Guide",
    "cryoprob.inference.result": "FitResult",
    "cryoprob.inference.fit": "fit",
    "cryoprob.inference.run": "run_fit",
    "cryoprob.inference.schedule": "Schedule",
    "cryoprob.inference.treatments.bounded": "Bounded",
    "cryoprob.inference.treatments.conditional_gaussian": "ConditionalGaussian",
    "cryoprob.inference.treatments.exact": "Exact",
    "cryoprob.inference.treatments.gaussian_volume": "GaussianVolume",
    "cryoprob.inference.treatments.known": "Known",
    "cryoprob.inference.treatments.local": "Local",
    "cryoprob.inference.treatments.point": "Point",
    "cryoprob.io.mrc": "read_map write_map",
    "cryoprob.io.structures": "density read_structure",
    "cryoprob.io.tables": "read_particles write_particles",
    "cryoprob.metrics.alignment": "align_maps",
    "cryoprob.metrics.fsc": "fsc half_map_fsc resolution",
    "cryoprob.metrics.pose_error": "pose_error",
    "cryoprob.models.gaussian_contrast": "GaussianContrast",
    "cryoprob.models.gaussian_defocus": "GaussianDefocus",
    "cryoprob.models.noises.radial_noise": "RadialNoise",
    "cryoprob.models.particle_model": "ParticleModel",
    "cryoprob.models.poses.gaussian_shift": "GaussianShift",
    "cryoprob.models.poses.uniform_rotation": "UniformRotation",
    "cryoprob.models.simulate": "Microscope simulate",
    "cryoprob.models.volumes.coordinate_network": "CoordinateNetwork",
    "cryoprob.models.volumes.fourier_voxels": "FourierVoxels",
    "cryoprob.models.volumes.gaussian_mixture": "GaussianMixture",
    "cryoprob.models.volumes.linear_modes": "LinearModes",
    "cryoprob.models.volumes.real_voxels": "RealVoxels",
    "cryoprob.optics": "Optics ctf",
    "cryoprob.particles": "Batch ParticleStack",
    "cryoprob.phantoms": "PHANTOMS",
}

_HOME = {name: module for module, names in _HOMES.items() for name in names.split()}

_MODULES = "fourier geometry inference io masks metrics models noise optics particles phantoms"

__all__ = [
    "Amortized",
    "Batch",
    "Bounded",
    "ConditionalGaussian",
    "CoordinateNetwork",
    "DataWarning",
    "Exact",
    "FitConfig",
    "FitResult",
    "FourierVoxels",
    "GaussianContrast",
    "GaussianDefocus",
    "GaussianMixture",
    "GaussianShift",
    "GaussianVolume",
    "Guide",
    "Importance",
    "InputError",
    "Known",
    "LinearModes",
    "Local",
    "Microscope",
    "Modal",
    "Optics",
    "OutputError",
    "PHANTOMS",
    "ParticleModel",
    "ParticleStack",
    "PerImage",
    "Point",
    "Prior",
    "Proposed",
    "RadialNoise",
    "RealVoxels",
    "RotationGrid",
    "Schedule",
    "ShiftGrid",
    "UniformRotation",
    "__version__",
    "align_maps",
    "budget",
    "ctf",
    "density",
    "draw_volumes",
    "e_step",
    "family",
    "fit",
    "fsc",
    "half_map_fsc",
    "held_out",
    "loo",
    "pose_error",
    "read_map",
    "read_particles",
    "read_structure",
    "resolution",
    "run_fit",
    "simulate",
    "write_map",
    "write_particles",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("cryoprob")
    if name in _MODULES.split():
        return import_module(f"cryoprob.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'cryoprob' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
