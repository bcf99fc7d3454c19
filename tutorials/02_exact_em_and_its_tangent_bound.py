# %% [markdown]
# # 2. Exact EM and its tangent bound
#
# **Question: what does a step of EM do to the likelihood, and what is lost when the E-step is
# not exact?**
#
# For any distribution `q` over the hidden poses `h` of the images, and any map `V`,
#
#     log p(x | V)  =  L(q, V)  +  KL( q || p(h | x, V) ),
#     L(q, V)       =  E_q[ log p(x, h | V) ]  +  entropy of q.
#
# The divergence is never negative, so `L(q, .)` is a lower bound of the log evidence, whatever
# `q`. EM takes `q = p(h | x, V_t)`, the posterior at the present map: the divergence is then 0 at
# `V_t`, the bound touches the curve there, and because it lies below everywhere else it is
# *tangent*. Its maximum is the next map. With another `q` there is a gap, the bound touches
# nowhere, and climbing it need not climb the evidence. Donnat et al. 2022 ("Deep generative
# modeling for volume reconstruction in cryo-electron microscopy"), Figure 3, draws this as a
# sketch; here it is for the real model, with every number exact.

# %%
import os
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import Tensor

import cryoprob as cp
from cryoprob.fourier.shells import low_pass
from cryoprob.inference.evidence import scores
from cryoprob.inference.m_step import power, solve_volume
from cryoprob.models.simulate import draw_images, draw_optics, draw_poses

SMOKE = os.environ.get("CRYOPROB_TUTORIAL", "full") == "smoke"
HERE = Path(globals().get("__file__", "notebook")).parent
FIGURES = Path(os.environ.get("CRYOPROB_FIGURES", HERE / "figures"))
FIGURES.mkdir(parents=True, exist_ok=True)
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#7F7F7F"

BOX, PIXEL, SNR = 16, 6.0, 0.03  # pixels along a side, Angstrom a pixel
IMAGES = 120 if SMOKE else 400
POINTS = 25 if SMOKE else 81  # of the curves
EM_STEPS = 6 if SMOKE else 25  # of the last section

# %% [markdown]
# ## A small problem
#
# A made-up molecule of thirty beads, images of 16 pixels, poses on the 30 degree grid of 576
# rotations times 13 shifts. Everything in double precision, so that identities can be checked to
# many digits.

# %%
generator = torch.Generator().manual_seed(5)
truth = cp.PHANTOMS["bead-walk"](BOX, PIXEL, generator).double()
optics = draw_optics(IMAGES, generator, cp.Microscope(defocus=(6000.0, 12000.0)))
kind = {"dtype": torch.float64}
model = cp.ParticleModel(
    cp.FourierVoxels(BOX, **kind),
    cp.UniformRotation(**kind).discretize(1),
    cp.GaussianShift(4.0, **kind).discretize(12.0, 6.0),
    cp.RadialNoise(torch.ones(1, BOX // 2 + 2, **kind)),
    PIXEL,
)
poses, variance = draw_poses(model, truth, optics, IMAGES, seed=6)
truth = truth * (SNR / variance.mean()).sqrt()
images = torch.cat(list(draw_images(model, truth, optics, poses, seed=7)))
stack = cp.ParticleStack.from_arrays(images, PIXEL, optics)
every = torch.arange(IMAGES)
print(f"{IMAGES} images of {BOX} x {BOX} pixels at SNR {SNR:g}, noise variance 1")

# %% [markdown]
# ## A line through the space of maps
#
# The map has thousands of numbers, too many to draw. So we look along a line,
#
#     V(a) = a * truth,
#
# from nothing at `a = 0` to the true map at `a = 1` and beyond: the shape is known, its contrast
# is not. On that line the model has a single parameter `a`, and EM for it is EM.


# %%
def on_line(a: float) -> Tensor:
    """The map at a place of the line, [D, D, D]."""
    return a * truth


def log_joint(a: float) -> tuple[Tensor, Tensor]:
    """Of every image and pose cell, log p(x, h | V(a)) [N, T, Q], and log p(x | V(a)) [N]."""
    parts = list(scores(model, on_line(a), stack, every))
    joint = torch.cat([part.log_joint + part.noise_only[:, None, None] for part in parts])
    return joint, torch.cat([part.log_evidence for part in parts])


# %% [markdown]
# `scores` has every pose cell's joint density; its log-sum-exp is the log evidence. A choice of
# `q` is a table of cell masses. We take two:
#
# * exact EM: the posterior;
# * modal EM: all mass in the best cell. On a grid of cells with masses this is a proper bound
#   (on a continuum it is not: the entropy of a Dirac is minus infinity), and its gap is exactly
#   `-log` of the best cell's posterior mass.


# %%
def exact_q(joint: Tensor) -> Tensor:
    """The posterior, as log masses [N, T, Q]."""
    return joint - joint.flatten(1).logsumexp(1)[:, None, None]


def modal_q(joint: Tensor) -> Tensor:
    """All mass in the best cell."""
    flat = joint.flatten(1)
    nothing = torch.full_like(flat, -torch.inf)
    return nothing.scatter(1, flat.argmax(1, keepdim=True), 0.0).view_as(joint)


def bound(log_q: Tensor, joint: Tensor) -> float:
    """L(q, V), the mean over the images, nats."""
    mass = log_q.exp()
    inside = torch.where(mass > 0, mass * (joint - log_q), torch.zeros_like(mass))
    return float(inside.flatten(1).sum(1).mean())


# %% [markdown]
# ## The M-step along the line
#
# Given `q`, the bound is a parabola in `a`: slices are linear in the map and the noise is
# Gaussian. Three values determine it, and its peak is the M-step in closed form.


# %%
def parabola(log_q: Tensor, at: dict[float, Tensor]) -> Tensor:
    """Coefficients [3] (highest first) of the bound as a function of ``a``, by three points."""
    a = torch.tensor(list(at), **kind)
    powers = torch.stack([a**2, a, torch.ones_like(a)], 1)
    values = torch.tensor([bound(log_q, joint) for joint in at.values()], **kind)
    return torch.linalg.solve(powers, values)


def value(coefficients: Tensor, a: Tensor) -> Tensor:
    """The parabola at places ``a``."""
    return coefficients[0] * a**2 + coefficients[1] * a + coefficients[2]


NODES = {a: log_joint(a)[0] for a in (0.0, 1.0, 2.0)}


def climb(
    choose_q: Callable[[Tensor], Tensor], start: float, steps: int
) -> tuple[list[float], list[Tensor]]:
    """Places of successive EM steps, and the bound that each one climbed."""
    places, bounds = [start], []
    for _ in range(steps):
        log_q = choose_q(log_joint(places[-1])[0])
        bounds.append(parabola(log_q, NODES))
        places.append(float(-bounds[-1][1] / (2 * bounds[-1][0])))
    return places, bounds


START, SHOWN = 0.2, 3
grid = torch.linspace(-0.2, 2.0, POINTS, **kind)
evidence = torch.tensor([float(log_joint(float(a))[1].mean()) for a in grid], **kind)
paths = {"exact EM": climb(exact_q, START, SHOWN), "modal EM": climb(modal_q, START, SHOWN)}

# %% [markdown]
# Before we draw, we check what the text claims: bounds lie below the curve everywhere; the exact
# one touches it, with the same slope; the modal one does not touch it, and its distance is
# `-log` of the best cell's mass; and each exact step raises the evidence.

# %%
for name, (places, bounds) in paths.items():
    for a, coefficients in zip(places, bounds, strict=False):
        joint, here = log_joint(a)
        gap = float(here.mean()) - float(value(coefficients, torch.tensor(a, **kind)))
        step = 1e-3
        slope = (float(log_joint(a + step)[1].mean()) - float(log_joint(a - step)[1].mean())) / (
            2 * step
        )
        own = float(2 * coefficients[0] * a + coefficients[1])
        print(
            f"{name}: at a = {a:6.3f} gap {gap:7.4f} nats per image,"
            f" slope of the curve {slope:8.4f}, of the bound {own:8.4f}"
        )
        assert bool((value(coefficients, grid) <= evidence + 1e-9).all())
        if name == "exact EM":
            assert abs(gap) < 1e-6 and abs(slope - own) < 1e-3 * max(1, abs(slope))
        else:
            best = exact_q(joint).flatten(1).amax(1)
            assert abs(gap + float(best.mean())) < 1e-6 and gap > 0.1

heights = [float(log_joint(a)[1].mean()) for a in paths["exact EM"][0]]
assert all(after > before for before, after in zip(heights, heights[1:], strict=False))

# %%
figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained", sharey=True)
for ax, (name, (places, bounds)) in zip(axes, paths.items(), strict=True):
    ax.plot(grid, evidence, color="black", lw=2, label="log evidence")
    for number, (a, coefficients) in enumerate(zip(places, bounds, strict=False)):
        color = (BLUE, ORANGE, GREEN)[number]
        ax.plot(grid, value(coefficients, grid), color=color, label=f"bound of step {number + 1}")
        at = torch.tensor(a, **kind)
        top, touch = float(log_joint(a)[1].mean()), float(value(coefficients, at))
        ax.plot([a, a], [touch, top], color=color, lw=1, ls=":")
        ax.plot(a, top, "o", color=color, ms=6)
        peak = torch.tensor(places[number + 1], **kind)
        ax.plot(peak, value(coefficients, peak), "v", color=color, ms=6)
    ax.set_title(f"{name}: {'tangent' if name == 'exact EM' else 'a gap'}")
    ax.set_xlabel("contrast a of the map (1: truth)")
    ax.spines[["top", "right"]].set_visible(False)
starts = [float(value(path[1][0], torch.tensor(START, **kind))) for path in paths.values()]
span = float(evidence.max()) - min(*starts, float(evidence.min()))
axes[0].set_ylim(float(evidence.max()) - 1.3 * span, float(evidence.max()) + 0.1 * span)
axes[0].set_ylabel("nats per image")
axes[0].legend(frameon=False, loc="lower left", fontsize=9)
figure.savefig(FIGURES / "02_tangent_bounds.png", dpi=130)
plt.close(figure)

# %% [markdown]
# Circles are on the curve, at the maps where `q` was made; triangles are the peaks of the bounds,
# the next maps. On the left every bound touches the curve at its circle. On the right there is a
# gap, and the place where modal EM settles is where *its* bounds stop rising, not where the
# evidence peaks:

# %%
far = {
    name: climb(q, START, 15 if SMOKE else 40)[0][-1]
    for name, q in (("exact EM", exact_q), ("modal EM", modal_q))
}
peak = float(grid[evidence.argmax()])
for name, a in far.items():
    print(f"{name} settles at a = {a:.3f}; the evidence is highest near {peak:.3f}")
spacing = float(grid[1] - grid[0])
assert abs(far["exact EM"] - peak) < spacing + 0.02
assert far["modal EM"] > far["exact EM"] + 0.1

# %% [markdown]
# ## How fast: the share of missing information
#
# Near its limit each EM step shrinks the error by a factor
#
#     r = 1 - (curvature of the log evidence) / (curvature of the bound),
#
# the share of the information that is missing because the poses are hidden (Dempster, Laird and
# Rubin 1977). The bound's curvature is that of its parabola. We compare with the steps themselves.

# %%
limit = climb(exact_q, far["exact EM"], 15 if SMOKE else 40)[0][-1]
step = 0.02
around = [float(log_joint(limit + d)[1].mean()) for d in (-step, 0.0, step)]
of_evidence = (around[0] - 2 * around[1] + around[2]) / step**2
of_bound = 2 * float(parabola(exact_q(log_joint(limit)[0]), NODES)[0])
predicted = 1 - of_evidence / of_bound
near = climb(exact_q, limit + 0.05, 2)[0]
observed = (near[2] - limit) / (near[1] - limit)
print(f"missing information {predicted:.3f}, shrinking of the error in a step {observed:.3f}")
assert abs(predicted - observed) < 0.05

# %% [markdown]
# ## All voxels at once
#
# The real M-step solves for the whole map, a linear system whose matrix is the sum of the inserted
# slices. With a Gaussian prior on the map (here of the truth's own power spectrum), exact EM can
# never lower the log posterior `log p(x | V) + log p(V)`. Programs often divide by the diagonal of
# the matrix instead, which is cheap and not the maximum when slices are interpolated on a grid.
# Both, from a blurred map:

# %%
model.linear_volume.tau2.copy_(power(truth).clamp(min=1e-3 * float(power(truth).max())))


def em(exact: bool) -> list[float]:
    """The log posterior, nats per image, at every step."""
    tau2, prior = model.linear_volume.tau2, model.volume.prior()
    blurred = low_pass(truth, PIXEL, 40.0)
    guide = cp.Guide(rotation=cp.Exact(), shift=cp.Exact(), volume=cp.Point(blurred))
    found = []
    for _ in range(EM_STEPS):
        here = guide.volume.coefficients.detach()
        statistics = cp.e_step(model, guide, stack)
        total = float(statistics.summary.bound.sum() + prior.log_prob(here))
        found.append(total / IMAGES)
        equations = statistics.insertion.equations()
        guide.volume.coefficients.data = solve_volume(
            equations, tau2, here, exact=exact, tolerance=1e-8
        ).volume
    return found


ways = {"exact M-step": em(True), "diagonal M-step": em(False)}
figure, ax = plt.subplots(figsize=(5.4, 3.6), layout="constrained")
for (name, heights), color in zip(ways.items(), (BLUE, ORANGE), strict=True):
    fell = sum(b < a - 1e-9 for a, b in zip(heights, heights[1:], strict=False))
    print(f"{name}: ends at {heights[-1]:.3f} nats per image, fell in {fell} of {EM_STEPS - 1}")
    ax.plot(range(1, EM_STEPS + 1), heights, "o-", ms=3, color=color, label=name)
ax.set(xlabel="EM step", ylabel="log posterior, nats per image")
ax.spines[["top", "right"]].set_visible(False)
ax.legend(frameon=False, loc="center right")
figure.savefig(FIGURES / "02_log_posterior.png", dpi=130)
plt.close(figure)
rises = ways["exact M-step"]
assert all(after >= before - 1e-9 for before, after in zip(rises, rises[1:], strict=False))
assert rises[-1] > ways["diagonal M-step"][-1]

# %% [markdown]
# ## Exercises
#
# 1. Raise the SNR to 0.5. The two panels of the figure become nearly alike: why? Which number that
#    is printed above tells how alike they are?
# 2. Let `q` be the posterior raised to the power 1/2 (tempered), normalized. Is its bound tangent
#    anywhere? Where does EM with it settle?
# 3. Let `q` be the posterior summed over shifts, times the posterior summed over rotations (a
#    mean-field q). How large is its gap, beside that of the modal one?
# 4. Start at `a = -0.2`. Which limit does exact EM find, and what does it look like? (A map of
#    the other sign is what a wrong sign of the CTF gives.)
# 5. Stop the conjugate gradients of the M-step early (`tolerance=0.3`, from the present map). Does
#    the log posterior still rise at every step? (This is generalized EM.)
