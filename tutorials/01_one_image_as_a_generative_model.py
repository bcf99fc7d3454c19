# %% [markdown]
# # 1. One image as a generative model
#
# **Question: what does one image say about how it was made, and how does noise change that?**
#
# In single-particle cryo-electron microscopy thousands of copies of one molecule are frozen in
# thin ice, each turned as it happened to fall, and the microscope takes one noisy picture of
# each. What is wanted is the molecule's density in three dimensions. In statistical words it is a
# latent variable model, and one image `x` is drawn like this:
#
#     R ~ uniform on SO(3)                 how the molecule lies (a rotation)
#     t ~ Normal(0, s^2 I)                 where it lies in the picture (a shift, in Angstrom)
#     x = CTF . shift_t . slice_R(V) + e   what the microscope makes of it
#     e ~ Normal(0, sigma^2) a pixel
#
# `V` is the density on a grid of voxels, the parameter that all images share. `slice_R(V)` adds
# the voxels up along the line of sight of a molecule that is turned by `R`; in Fourier space that
# is a plane through the center of the transform of `V`, hence the name. The contrast transfer
# function (CTF) is a filter of the microscope: it multiplies each spatial frequency by a known
# number between -1 and 1. All of it is linear in `V`, and the noise is Gaussian. The only hard
# part is that `R` and `t` are never seen.

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO

import cryoprob as cp
from cryoprob.fourier.bands import full_band
from cryoprob.inference.evidence import scores
from cryoprob.models.simulate import draw_images, draw_optics, draw_poses

SMOKE = os.environ.get("CRYOPROB_TUTORIAL", "full") == "smoke"
HERE = Path(globals().get("__file__", "notebook")).parent
FIGURES = Path(os.environ.get("CRYOPROB_FIGURES", HERE / "figures"))
FIGURES.mkdir(parents=True, exist_ok=True)

BOX, PIXEL = 32, 3.0  # pixels along a side, Angstrom a pixel
ORDER = 1 if SMOKE else 2  # of the grid of rotations
MANY = 40 if SMOKE else 400  # images of the last section

# %% [markdown]
# ## The molecule
#
# Adenylate kinase, an enzyme of 214 residues, drawn residue by residue on a grid of voxels. We
# scale it so that an image without noise has a variance of 1 over its pixels (on average); then
# the signal-to-noise ratio (SNR) of an image is `1 / sigma^2`. Real images have 0.01 to 0.1.

# %%
generator = torch.Generator().manual_seed(1)
volume = cp.PHANTOMS["adk-open"](BOX, PIXEL, generator).double()


def particle_model(sigma2: float, order: int = ORDER) -> cp.ParticleModel:
    """The model of this page, with poses on a grid so that they can be summed over."""
    kind = {"dtype": torch.float64}
    return cp.ParticleModel(
        cp.FourierVoxels(BOX, **kind),
        cp.UniformRotation(**kind).discretize(order),
        cp.GaussianShift(3.0, **kind).discretize(6.0, 3.0),
        cp.RadialNoise(torch.full((1, BOX // 2 + 2), sigma2, **kind)),
        PIXEL,
    )


microscope = cp.Microscope()
optics = draw_optics(MANY, generator, microscope)
clean_model = particle_model(1.0)
poses, variance = draw_poses(clean_model, volume, optics, MANY, seed=2)
volume = volume / variance.mean().sqrt()

rotations, shifts = clean_model.rotation.matrices(), clean_model.shift.points()
print(f"box {BOX} pixels of {PIXEL:g} A; {len(rotations)} rotations, {len(shifts)} shifts")

# %% [markdown]
# ## Running the model forward
#
# `ParticleModel` is an ordinary Pyro model: its `forward` samples the sites `volume`, `rotation`,
# `shift` and `image`. Pyro's handlers work on it unchanged. Here `condition` sets the volume, and
# `uncondition` lets the images be drawn instead of observed.


# %%
def simulated(sigma2: float) -> tuple[cp.ParticleModel, cp.ParticleStack]:
    """A model at a noise level, and images of the same molecules at that noise."""
    model = particle_model(sigma2)
    images = torch.cat(list(draw_images(model, volume, optics, poses, seed=3)))
    stack = cp.ParticleStack.from_arrays(images, PIXEL, optics, poses.rotation, poses.shift)
    return model, stack


SNRS = (0.3, 0.05, 0.01)
experiments = {snr: simulated(1 / snr) for snr in SNRS}

model, stack = experiments[0.05]
batch = stack.batch(torch.arange(MANY), full_band(BOX), torch.float64)
free = poutine.condition(poutine.uncondition(model), {"volume": volume})
with torch.random.fork_rng():
    torch.manual_seed(4)
    trace = poutine.trace(free).get_trace(batch)
trace.compute_log_prob()
print(trace.format_shapes())

# %% [markdown]
# Read from the right: a map of voxels, and for each particle of the plate one rotation, one shift
# and one image. The image is held as its Fourier coefficients; because the transform is unitary
# their density is that of the pixels.
#
# The steps from the molecule to the picture, for one particle:

# %%
away, height = poses.shift.norm(dim=1), poses.rotation[:, 2, 2].abs()
ONE = int(((away > 4) & (height < 0.6)).nonzero()[0])  # off the center, seen from the side
band = full_band(BOX)
flat = cp.Optics(0.0, 0.0, 0.0, 300.0, 0.0, 1.0)  # a CTF of 1 everywhere
turn, move = poses.rotation[[ONE]].double(), poses.shift[[ONE]].double()


def clean(shift: torch.Tensor, with_ctf: bool) -> torch.Tensor:
    """The noiseless image [D, D] of the one particle."""
    one = stack.batch(torch.tensor([ONE]), band, torch.float64)
    likelihood = model.likelihood(volume, turn, shift, one)
    if not with_ctf:
        likelihood.ctf = torch.ones_like(likelihood.ctf)
    return band.unpack(likelihood.mean)[0]


pictures = {
    "slice (projection)": clean(torch.zeros_like(move), False),
    "shifted": clean(move, False),
    "times CTF": clean(move, True),
}
pictures |= {f"image, SNR {snr:g}": run[1].images([ONE])[0] for snr, run in experiments.items()}
figure, axes = plt.subplots(1, len(pictures), figsize=(11, 2.3), layout="constrained")
for ax, (name, picture) in zip(axes, pictures.items(), strict=True):
    ax.imshow(picture, cmap="gray", origin="lower")
    ax.set_title(name, fontsize=10)
    ax.set_xticks([])
    ax.set_yticks([])
figure.savefig(FIGURES / "01_one_image.png", dpi=130)
plt.close(figure)

# %% [markdown]
# ## Running it backward
#
# Given `V`, everything about the pose of one image is in
#
#     p(R, t | x, V)  =  p(x | R, t, V) p(R) p(t) / p(x | V)
#
# We put the rotations on a grid of cells of equal volume, the shifts on a lattice, and sum. It is
# the brute force of a finite mixture: every cell is a component, and the E-step of EM is Bayes'
# rule. Because the model is linear and Gaussian, the scores of all cells are one matrix product
# of images and slices, which is why brute force is affordable.
#
# `scores` gives `log p(x, R, t | V)` of every cell. Its log-sum-exp is the log evidence of the
# image. Pyro gets to the same number on its own, by enumerating both sites in parallel:

# %%
first = torch.arange(4)
found = next(scores(model, volume, stack, first))
exact = cp.Exact()
guide = cp.Guide(rotation=exact, shift=exact, volume=cp.Point(volume))
part = stack.batch(first, band, torch.float64)
enumerated = TraceEnum_ELBO(max_plate_nesting=1)(model, guide)
# the objective counts all images (4 stand for all), and the prior of the map
scaled = -float(enumerated(part).detach()) - float(model.volume.prior().log_prob(volume))
by_pyro = scaled / MANY
by_sums = float(found.log_evidence.mean())
print(f"log evidence by sums  {by_sums:.6f} nats per image")
print(f"log evidence by Pyro  {by_pyro:.6f} nats per image")
assert abs(by_sums - by_pyro) < 1e-6 * abs(by_sums)

# %% [markdown]
# ## What noise does to the posterior
#
# The same particle at the three noise levels. Each panel is the sphere of viewing directions (the
# rotation in the plane of the picture and the shift are summed out); the ring is the truth.


# %%
def directions(model: cp.ParticleModel, mass: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Viewing directions [K, 3], and the masses [n, K] of rotations' masses [n, Q] there."""
    grid = model.rotation.grid
    place = model.rotation.cells() // grid.n_psi
    points = grid.directions()
    summed = mass.new_zeros(len(mass), len(points)).index_add_(1, place, mass)
    return points, summed


def angles(points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Longitude and latitude in radians."""
    x, y, z = points.double().unbind(-1)
    return torch.atan2(y, x), torch.asin(z.clamp(-1, 1))


figure = plt.figure(figsize=(11, 2.3), layout="constrained")
for number, (snr, (model, stack)) in enumerate(experiments.items(), 1):
    log_posterior = next(scores(model, volume, stack, torch.tensor([ONE]))).log_posterior
    mass = log_posterior.exp()
    entropy = -float((mass * log_posterior.clamp(min=-1e4)).sum())
    points, by_direction = directions(model, mass.sum(1))
    ax = figure.add_subplot(1, 3, number, projection="mollweide")
    shade = (by_direction[0] / by_direction[0].max()).sqrt()
    order = shade.argsort()
    ax.scatter(*angles(points[order]), c=shade[order], s=9000 / len(points), cmap="Blues")
    ax.scatter(*angles(turn[:, 2]), s=110, facecolors="none", edgecolors="tab:red", lw=1.5)
    ax.set_xticks([])
    ax.set_yticks([])
    cells = torch.tensor(entropy).exp()
    ax.set_title(f"SNR {snr:g}: {cells:,.0f} of {mass.numel():,} poses", fontsize=10)
    print(f"SNR {snr:5g}: entropy {entropy:5.2f} nats, exp of it {cells:8.1f} poses")
figure.savefig(FIGURES / "01_posteriors.png", dpi=130)
plt.close(figure)

# %% [markdown]
# The grid has a fixed number of cells, so the entropy is at most its log. At low SNR one image
# leaves very many poses open, and a single best pose is a poor summary: the reason why cryo-EM
# needs many images, and why this package keeps the posterior.
#
# ## Is the posterior right?
#
# The poses of our images were drawn from the prior on the same grid, so the posterior must be
# calibrated: the smallest set of cells that holds 90 % of an image's posterior contains the true
# pose in 90 % of images or more (more where single cells are heavy). Averaged over images, the
# probability that the posterior gives to the true cell also grows with the SNR.

# %%
coverage, informed = {}, {}
for snr, (model, stack) in experiments.items():
    inside, truth_mass, entropies = [], [], []
    for found in scores(model, volume, stack, torch.arange(MANY)):
        mass = found.log_posterior.exp()
        true_turn = torch.cdist(
            poses.rotation[found.index].double().flatten(1), rotations.flatten(1)
        ).argmin(1)
        true_move = torch.cdist(poses.shift[found.index].double(), shifts).argmin(1)
        cell = true_move * len(rotations) + true_turn
        flat_mass = mass.flatten(1)
        own = flat_mass.gather(1, cell[:, None])
        above = (flat_mass * (flat_mass > own)).sum(1)  # what cells more probable than it hold
        inside.append(above < 0.9)
        truth_mass.append(own[:, 0])
        entropies.append(-(mass * found.log_posterior.clamp(min=-1e4)).sum((1, 2)))
    coverage[snr] = float(torch.cat(inside).double().mean())
    informed[snr] = float(torch.cat(entropies).mean())
    print(
        f"SNR {snr:5g}: truth inside the 90 % set in {100 * coverage[snr]:5.1f} % of images;"
        f" mean mass of the true cell {float(torch.cat(truth_mass).mean()):.3f};"
        f" mean entropy {informed[snr]:.2f} nats"
    )

deviation = (0.9 * 0.1 / MANY) ** 0.5
assert all(share > 0.9 - 4 * deviation for share in coverage.values())
low, middle, high = sorted(SNRS)
assert informed[high] < informed[middle] < informed[low]
assert informed[low] > 3.9  # exp of it: fifty poses and more

# %% [markdown]
# ## Exercises
#
# 1. Leave the CTF out (`optics=None`). Does an image of the same SNR tell more about its pose, or
#    less? Why is the sign of the CTF enough for most of the answer?
# 2. Score the images with a model that believes in half the true noise variance. What happens to
#    the entropy, and to the coverage of the 90 % sets?
# 3. Mirror the map (`volume.flip(0)`), and compare its log evidence with that of the true map.
#    When would the two be equal? (Think of images without a CTF, and of what a projection cannot
#    tell.)
# 4. Make the grid coarser by an order. By how much does the log evidence change at each SNR, and
#    at which SNR is the grid too coarse? (`cryoprob.inference.evidence.discretization` does it.)
