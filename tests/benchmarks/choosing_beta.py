"""Choosing beta: calibration of the conformations' q with cryoDRGN's default, and with noise learned.

    python tests/benchmarks/choosing_beta.py [--images N] [--steps N] [--snr S] [--seed N]
                                             [--threads N] [--figure FILE]

Linear modes (two, 16 x 16 pixels, poses known, the volume held at the truth), where the posterior
of z is known exactly. An encoder is trained twice by the ELBO: with the noise level that the
released loss of beta = 1 / zdim stands for (variance beta / 2 in units of the images'), and with
the noise learned. Prints a row each, and one of the exact posterior: the noise variance, the
standard deviation of q over the exact one, the error of q's mean in exact standard deviations,
coverage of the true z by 50 and 90 % intervals, and the median of KL(q || exact) in nats. The
figure has the coverage at every level.
"""

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

from moving import Moving, moving

from cryoprob.inference.encoders.centering import Centering
from cryoprob.inference.encoders.fourier_mlp import FourierMLP
from cryoprob.inference.guide import Guide
from cryoprob.inference.half import Half
from cryoprob.inference.joint import Joint, JointState
from cryoprob.inference.laws.vectors import NormalVector
from cryoprob.inference.learn import seeded
from cryoprob.inference.linear_posterior import latents
from cryoprob.inference.loop import Quiet, run_loop
from cryoprob.inference.objectives.elbo import Elbo
from cryoprob.inference.treatments.amortized import Amortized
from cryoprob.inference.treatments.point import Point

LEVELS = torch.linspace(0.02, 0.98, 49, dtype=torch.float64)


def fit(
    problem: Moving, sigma2: float | None, steps: int, seed: int
) -> tuple[Tensor, Tensor, float]:
    """Mean and deviation of an encoder's q, [N, K] each, and the noise variance at the end."""
    model, stack = problem.model, problem.stack
    power = float(stack.batch(torch.arange(len(stack)), model.band).power.sum(1).mean()) / 256
    model.noise.sigma2.fill_(power if sigma2 is None else sigma2 * power)
    known, size = problem.guide(), problem.z.shape[1]
    with seeded(seed):
        centering = Centering(known.shift, stack.pixel_size)
        encoder = FourierMLP(stack.box, torch.ones(10), width=256, layers=2, centering=centering)
        state = Amortized(encoder, NormalVector(size), torch.zeros(1, size))
    guide = Guide(
        rotation=known.rotation,
        shift=known.shift,
        conformation=state,
        volume=Point(problem.truth.float()),
    )
    radius = model.band.radius
    joint = Joint(
        Elbo(),
        seed,
        steps=steps,
        batch=128,
        first_radius=radius,
        radius=radius,
        noise=sigma2 is None,
        held={"volume": 1.0},
    )
    at = JointState(Half(model, guide, torch.arange(len(stack))))
    run_loop(joint, at, stack, stage="", steps=steps, observer=Quiet(), save=lambda: None)
    found = []
    with torch.no_grad():
        for index in torch.arange(len(stack)).split(500):
            guide.forget()
            numbers = state.numbers_of(stack.batch(index, guide.band(model)))
            found.append(torch.cat([state.law.mode(numbers), state.law.widths(numbers)], 1))
    mean, std = torch.cat(found).double().chunk(2, 1)
    return mean, std, float(model.noise.sigma2[:, 1:7].mean())


def coverage(z: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Share of the true values in central intervals of every level."""
    within = torch.special.erf((z - mean).abs() / std / 2**0.5)
    return (within.flatten()[:, None] <= LEVELS).double().mean(0)


def main() -> None:
    """Run the table and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--snr", type=float, default=0.3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--figure", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    options = {"box": 16, "n": given.images, "snr": given.snr, "resolution": 6.0, "radius": 6}
    problem = moving(**options, values=(8.0, 6.0), mean=8.0, dtype=torch.float32, seed=given.seed)
    problem.model.noise.sigma2.fill_(1.0)
    exact = latents(problem.model, problem.guide(problem.truth), problem.stack)
    width = exact.covariance.diagonal(dim1=1, dim2=2).sqrt()
    rows = {"exact posterior": (exact.mean, width, 1.0)}
    beta = 1 / problem.z.shape[1]
    rows[f"beta = 1 / zdim = {beta:g}"] = fit(problem, beta / 2, given.steps, given.seed)
    rows["noise learned"] = fit(problem, None, given.steps, given.seed)
    print("q                        noise  width   bias   50 %   90 %     KL")
    curves = {}
    for name, (mean, std, noise) in rows.items():
        curves[name] = coverage(problem.z, mean, std)
        ratio, away = float((std / width).mean()), (mean - exact.mean) / width
        own = torch.linalg.inv(exact.covariance)
        gap = torch.einsum("ni,nij,nj->n", mean - exact.mean, own, mean - exact.mean)
        trace = (own.diagonal(dim1=1, dim2=2) * std**2).sum(1)
        logs = torch.logdet(exact.covariance) - 2 * std.log().sum(1)
        divergence = (gap + trace - mean.shape[1] + logs) / 2
        half, most = (float(curves[name][(LEVELS - p).abs().argmin()]) for p in (0.5, 0.9))
        print(
            f"{name:24} {noise:5.2f} {ratio:6.2f} {float(away.square().mean().sqrt()):6.2f}"
            f" {half:6.1%} {most:6.1%} {float(divergence.median()):6.2f}",
            flush=True,
        )
    if given.figure:
        draw(given.figure, curves)


def draw(path: Path, curves: dict[str, Tensor]) -> None:
    """Coverage against level."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2, 3.8), layout="constrained")
    ax = figure.subplots()
    ax.plot([0, 1], [0, 1], color="#BBBBBB", linewidth=1)
    for (name, curve), color in zip(curves.items(), ("black", "#D55E00", "#0072B2"), strict=True):
        ax.plot(LEVELS, curve, label=name, color=color, linewidth=1.8)
    ax.set(
        xlabel="level of the interval",
        ylabel="true conformations inside",
        xlim=(0, 1),
        ylim=(0, 1),
    )
    ax.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
