"""Linear modes with exact posteriors: what they recover, what hard EM does, adenylate kinase.

    python tests/benchmarks/linear_modes.py [simulated] [adk] [--data FOLDER] [--images N] [...]

``simulated``: two modes at SNR 0.1, poses known: principal angles and singular values step by
step, of exact EM and of EM without the covariance of z (free, and orthonormalized as 3DVA does).
``adk``: the images of adenylate kinase between closed and open, poses known, K = 2: Spearman
correlation of the leading coordinate with the true progress, and the FSC of the map at each
image's z with its true frame's map, beside that of the mean map.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

from moving import Moving, moving, principal_angles

from cryoprob.fourier.shells import shell_sum
from cryoprob.fourier.transforms import fft3
from cryoprob.gaussians import gaussian_density
from cryoprob.inference.build import image_power
from cryoprob.inference.guide import Guide
from cryoprob.inference.half import Half
from cryoprob.inference.linear_modes_em import ModesEM, ModesState, principal
from cryoprob.inference.linear_posterior import latents
from cryoprob.inference.treatments.conditional_gaussian import ConditionalGaussian
from cryoprob.inference.treatments.known import Known
from cryoprob.inference.treatments.point import Point
from cryoprob.metrics.fsc import last_shell
from cryoprob.models.conformations.gaussian import GaussianConformation
from cryoprob.models.noises.radial_noise import RadialNoise
from cryoprob.models.particle_model import ParticleModel
from cryoprob.models.poses.gaussian_shift import GaussianShift
from cryoprob.models.poses.uniform_rotation import UniformRotation
from cryoprob.models.volumes.linear_modes import LinearModes
from cryoprob.particles import ParticleStack

KINDS = {
    "exact": {},
    "hard": {"hard": True, "gain": -torch.inf},
    "orthonormal": {"hard": True, "orthonormal": True},
}


def simulated(count: int, steps: int) -> None:
    """Table of the three kinds of EM on one stack."""
    print("kind         step   bound  angles/deg     values/true     var z   seconds", flush=True)
    for name, options in KINDS.items():
        problem = moving(
            box=16,
            n=count,
            snr=0.1,
            resolution=6.0,
            values=(8.0, 6.0),
            mean=8.0,
            radius=6,
            dtype=torch.float32,
        )
        follow(name, problem, ModesEM(seed=1, max_iterations=steps, **options))


def follow(name: str, problem: Moving, algorithm: ModesEM) -> None:
    """The steps of one fit, a line each."""
    true = problem.truth[1:].flatten(1).norm(dim=1)
    state, began = problem.state(), time.time()
    while not state.done:
        record = algorithm.step(state, problem.stack)
        found = principal(state.half.guide.volume.coefficients.detach())
        angles = principal_angles(found.coefficients[1:], problem.truth[1:]).tolist()
        values = (found.singular_values / true).tolist()
        print(
            f"{name:12} {state.iteration:4} {record['bound']:9.3f}"
            f" {angles[0]:6.2f} {angles[1]:6.2f}  {values[0]:7.3f} {values[1]:7.3f}"
            f" {record['z_variance']:8.3f} {time.time() - began:7.1f}",
            flush=True,
        )


def adk_state(stack: ParticleStack, size: int, radius: int) -> ModesState:
    """Model and guide of K modes at the stack's poses, noise at the images' power."""
    power = image_power(stack).float()
    signal = power.mean(0) / stack.box
    model = ParticleModel(
        LinearModes(stack.box, size, signal, 0.1 * signal, radius=radius),
        UniformRotation(),
        GaussianShift(5.0),
        RadialNoise(power),
        stack.pixel_size,
        conformation=GaussianConformation(torch.ones(size)),
    )
    guide = Guide(
        rotation=Known(stack.rotation.float()),
        shift=Known(stack.shift.float()),
        volume=Point(torch.zeros(1 + size, *[stack.box] * 3)),
        conformation=ConditionalGaussian(),
    )
    return ModesState(Half(model, guide, torch.arange(len(stack))))


def frame_maps(data: Path, box: int, pixel_size: float) -> torch.Tensor:
    """The true map of every frame, [20, D, D, D]."""
    with np.load(data / "atoms.npz") as atoms:
        weight = torch.from_numpy(atoms["map_scale"] * atoms["atomic_number"]).double()
        variance = torch.full_like(weight, float(atoms["sigma"]) ** 2)
        return torch.stack(
            [
                gaussian_density(
                    torch.from_numpy(xyz).double(),
                    weight[:, None],
                    variance[:, None],
                    box,
                    pixel_size,
                )
                for xyz in atoms["xyz"]
            ]
        )


def adk(data: Path, count: int | None, size: int, radius: int, steps: int, doubt: bool) -> None:
    """Modes of the adenylate kinase set at known poses."""
    stack = ParticleStack.read(data / "truth.star", need=("ctf", "rotation", "shift"))
    frame, progress = (
        torch.from_numpy(stack.table.columns.numbers(name))
        for name in ("frameIndex", "frameProgress")
    )
    if count is not None:
        stack, frame, progress = stack.subset(torch.arange(count)), frame[:count], progress[:count]
    state, algorithm = (
        adk_state(stack, size, radius),
        ModesEM(seed=1, max_iterations=steps, doubt=doubt),
    )
    began = time.time()
    while not state.done:
        record = algorithm.step(state, stack)
        found = principal(state.half.guide.volume.coefficients.detach())
        z = found.latent(
            latents(state.half.model, state.half.guide, stack, covariance=state.covariance).mean
        )
        ranks = [abs(spearmanr(z[:, k], progress).statistic) for k in range(size)]
        print(
            f"adk step {state.iteration:3}  bound {record['bound']:10.3f}  Spearman "
            + " ".join(f"{rank:.4f}" for rank in ranks)
            + "  singular values "
            + " ".join(f"{v:.3f}" for v in found.singular_values.tolist())
            + f"  {time.time() - began:6.0f} s",
            flush=True,
        )
    if size > 1:
        arc = abs(spearmanr(along_the_arc(z[:, :2]), progress).statistic)
        print(f"Spearman of the place along the parabola in the first two coordinates {arc:.4f}")
    judge(state, stack, data, frame.long(), z.float(), found.coefficients)


def along_the_arc(z: torch.Tensor) -> torch.Tensor:
    """Place [N] of the nearest point on the parabola that fits coordinates [N, 2] best.

    A path that is bent in the space of maps shows as an arc in its first two principal
    coordinates, whose ends the first alone does not tell apart.
    """
    first, second = z.T
    powers = torch.stack([torch.ones_like(first), first, first**2], 1)
    bend = torch.linalg.lstsq(powers, second[:, None]).solution[:, 0]
    t = torch.linspace(-3, 3, 601, dtype=z.dtype)
    curve = torch.stack([t, bend[0] + bend[1] * t + bend[2] * t**2], 1)
    return t[torch.cdist(z, curve).argmin(1)]


def judge(
    state: ModesState,
    stack: ParticleStack,
    data: Path,
    frame: torch.Tensor,
    z: torch.Tensor,
    coefficients: torch.Tensor,
) -> None:
    """FSC of the map at each image's z, and of the mean, with the true frame's, averaged."""
    truth = fft3(frame_maps(data, stack.box, stack.pixel_size).double())
    parts = fft3(coefficients.double())
    cross = torch.stack([shell_sum((parts * one.conj()).real) for one in truth])
    power = torch.stack([shell_sum((parts * one.conj()).real) for one in parts])
    own = shell_sum(truth.abs() ** 2)[frame]
    curves = {}
    for name, used in (("at z", z.double()), ("mean", torch.zeros_like(z).double())):
        weight = torch.nn.functional.pad(used, (1, 0), value=1.0)
        found = torch.einsum("na,nas->ns", weight, cross[frame])
        size = torch.einsum("na,abs,nb->ns", weight, power, weight)
        curves[name] = (found / (size * own).sqrt())[:, :-1].mean(0)
    radius = state.half.model.band.radius
    print("shell   " + "   ".join(curves))
    for shell in range(1, radius + 1):
        print(f"{shell:5}" + "".join(f" {curve[shell]:6.3f}" for curve in curves.values()))
    for name, curve in curves.items():
        mean, last = curve[1 : radius + 1].mean(), last_shell(curve, 0.5)
        print(f"{name}: average {mean:.4f} to shell {radius}, above 0.5 to shell {last}")


def main() -> None:
    """Run what was asked for."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "data"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="*", default=["simulated", "adk"])
    parser.add_argument("--data", type=Path, default=beside / "adk-path")
    parser.add_argument("--images", type=int)
    parser.add_argument("--size", type=int, default=2)
    parser.add_argument("--radius", type=int, default=20)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--doubt", action="store_true", help="variational Bayes of the modes")
    given = parser.parse_args()
    if "simulated" in given.what:
        simulated(given.images or 8000, given.steps)
    if "adk" in given.what:
        adk(given.data, given.images, given.size, given.radius, given.steps, given.doubt)


if __name__ == "__main__":
    main()
