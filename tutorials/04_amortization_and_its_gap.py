# %% [markdown]
# # 4. Amortization and its gap
#
# **Question: what does it cost to let a network read the pose off the image, and what does the
# training objective have to do with it?**
#
# EM finds the posterior of every image anew. A variational autoencoder trains a network once, the
# encoder, which gives the parameters of `q(R, t | x)` for any image: the cost is *amortized*. What
# is lost can be counted, because on a grid of poses the exact posterior is within reach:
#
#     log p(x) = L(q) + min KL(q || p)  +  { KL(q_encoder || p) - min KL(q || p) }
#                       over the family
#                bound  approximation gap   amortization gap
#
# (Cremer, Li and Duvenaud 2018). The first gap is the price of the *family* of distributions, the
# second that of the *encoder*. A bigger network can only help with the second.

# %%
import os
from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import Tensor

import cryoprob as cp
from cryoprob.geometry.rotations import random_rotations
from cryoprob.inference.cells import masses_of
from cryoprob.inference.encoders.convolutional import Convolutional
from cryoprob.inference.evidence import Budget, budget, scores
from cryoprob.inference.grids import on_grid
from cryoprob.inference.half import Half
from cryoprob.inference.laws.heads import Heads
from cryoprob.inference.laws.rotations import ConcentratedLaw
from cryoprob.inference.laws.shifts import NormalShift
from cryoprob.inference.learn import seeded
from cryoprob.inference.levels import Level
from cryoprob.inference.natural_learner import NaturalLearner
from cryoprob.inference.objectives.base import Objective
from cryoprob.inference.objectives.elbo import Elbo
from cryoprob.inference.objectives.sleep import Sleep
from cryoprob.inference.treatments.amortized import Amortized
from cryoprob.inference.treatments.per_image import PerImage
from cryoprob.models.simulate import draw_images, draw_optics, draw_poses

SMOKE = os.environ.get("CRYOPROB_TUTORIAL", "full") == "smoke"
HERE = Path(globals().get("__file__", "notebook")).parent
FIGURES = Path(os.environ.get("CRYOPROB_FIGURES", HERE / "figures"))
FIGURES.mkdir(parents=True, exist_ok=True)
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#7F7F7F"

BOX, PIXEL, SNR = 16, 6.0, 0.1  # pixels along a side, Angstrom a pixel
TRAIN, FRESH = (40, 4) if SMOKE else (50, 48)  # images to train on, and to test on
ROUNDS, STEPS = (2, 20) if SMOKE else (4, 500)  # of training
BATCH = 20 if SMOKE else 50  # images in a step
HEADS = 2 if SMOKE else 4  # hypotheses for the rotation

# %% [markdown]
# ## A small problem at a known map
#
# Training the map and the encoder together would mix two questions, so the map stays at the truth.
# Poses live on the continuum, as the encoder's laws do. For the accounts they are put on a grid:
# the mass of a law in each cell is compared with the posterior's.

# %%
generator = torch.Generator().manual_seed(5)
truth = cp.PHANTOMS["bead-walk"](BOX, PIXEL, generator)
total = TRAIN + FRESH
optics = draw_optics(total, generator, cp.Microscope(defocus=(6000.0, 12000.0)))
SHIFT_SD = 4.0  # Angstrom
model = cp.ParticleModel(
    cp.FourierVoxels(BOX),
    cp.UniformRotation(),
    cp.GaussianShift(SHIFT_SD),
    cp.RadialNoise(torch.ones(1, BOX // 2 + 2)),
    PIXEL,
)
poses, variance = draw_poses(model, truth, optics, total, seed=6)
truth = truth * float(SNR / variance.mean()) ** 0.5
images = torch.cat(list(draw_images(model, truth, optics, poses, seed=7)))
stack = cp.ParticleStack.from_arrays(images, PIXEL, optics)
train, fresh = torch.arange(TRAIN), torch.arange(TRAIN, total)
grids = cp.UniformRotation().discretize(1), cp.GaussianShift(SHIFT_SD).discretize(12.0, 6.0)
gridded = on_grid(model, *grids)
print(f"{TRAIN} images to train on, {FRESH} fresh ones; SNR {SNR:g}")

# %% [markdown]
# ## The encoder and its law
#
# A convolutional network looks at the image (whitened, filtered by the CTF) and gives the numbers
# of a law. For the rotation that is a mixture of a few concentrated laws on SO(3), since views of
# a noisy image are often ambiguous; for the shift a normal law.


# %%
def encoder_guide() -> cp.Guide:
    """A guide with a fresh encoder; the same one at every call."""
    starts = random_rotations(HEADS, torch.Generator().manual_seed(8))
    with seeded(9):
        noise = torch.ones(BOX // 2 + 2)
        encoder = Convolutional(BOX, noise, channels=8, size=128, matched=True)
        turns = Amortized(encoder, Heads(ConcentratedLaw(30.0), HEADS), starts)
        moves = Amortized(encoder, NormalShift(SHIFT_SD), torch.zeros(1, 2))
    return cp.Guide(rotation=turns, shift=moves, volume=cp.Point(truth))


def gap(guide: cp.Guide, index: Tensor) -> Tensor:
    """KL(q || posterior) of images on the grid: evidence less bound, nats [n]."""
    found = []
    with torch.no_grad():
        for part in scores(gridded, truth, stack, index):
            guide.forget()
            batch = stack.batch(part.index, guide.band(model))
            q = masses_of(guide, batch, Level.of(gridded))
            found.append(part.log_evidence - part.bound(q))
    return torch.cat(found)


# %% [markdown]
# ## Two ways to train
#
# * **Wake**: raise the ELBO of the training images. This is the variational autoencoder. It
#   minimizes `KL(q || p)`, which forgives a `q` that misses modes.
# * **Sleep**: let the model draw poses and images, and raise `log q(pose | image)` at the poses
#   that it drew. It minimizes `KL(p || q)`, which does not forgive missing modes. The training set
#   has no end, so there is nothing to overfit; but it needs a model that is right.
# * **Both**: a step of each in turn.
#
# All three have the same number of steps, of images in a step, the same network and the same
# start. An objective is a number per image; a step of training is plain PyTorch.


# %%
def rounds(guide: cp.Guide, objectives: tuple[Objective, ...], seed: int) -> Iterator[int]:
    """Train a guide's encoder, the rate falling to 0; stop and look after every ``STEPS``."""
    encoder = torch.nn.ModuleList([guide.rotation, guide.shift])
    optimizer = torch.optim.Adam(encoder.parameters(), lr=2e-3)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, ROUNDS * STEPS)
    for step in range(1, ROUNDS * STEPS + 1):
        with seeded(seed + step):
            some = train[torch.randperm(TRAIN)[:BATCH]]
            batch = stack.batch(some, guide.band(model))
            objective = objectives[step % len(objectives)]
            value = objective(model, guide, truth, batch).mean()
        optimizer.zero_grad()
        (-value).backward()
        torch.nn.utils.clip_grad_norm_(encoder.parameters(), 100.0)
        optimizer.step()
        falling.step()
        if step % STEPS == 0:
            yield step


def gaps(guide: cp.Guide) -> tuple[float, float]:
    """Mean gaps of training images and of fresh ones, nats per image."""
    return float(gap(guide, train).mean()), float(gap(guide, fresh).mean())


menus = {"wake": (Elbo(),), "sleep": (Sleep(),), "both": (Sleep(), Elbo())}
guides: dict[str, cp.Guide] = {}
curves: dict[str, list[tuple[float, float]]] = {}
for name, objectives in menus.items():
    guide = guides[name] = encoder_guide()
    curves[name] = [gaps(guide), *(gaps(guide) for _ in rounds(guide, objectives, seed=100))]
    own, new = curves[name][-1]
    print(
        f"{name:5s}: gap {own:5.2f} nats per image on the training images, {new:5.2f} on fresh"
        f" ones, after {ROUNDS * STEPS} steps (before: {curves[name][0][1]:.2f})"
    )

# %%
figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
places = [STEPS * number for number in range(ROUNDS + 1)]
own, new = (torch.tensor([[row[n] for row in rows] for rows in curves.values()]) for n in (0, 1))
by_heart = (new - own) - (new - own)[list(curves).index("sleep")]
for name, gone, extra, color in zip(curves, new, by_heart, (ORANGE, BLUE, GREEN), strict=True):
    axes[0].plot(places, gone, "o-", ms=4, color=color, label=name)
    axes[1].plot(places, extra, "o-", ms=4, color=color, label=name)
axes[0].set(title="fresh images", ylabel="KL(q || posterior), nats per image")
axes[1].set(title="fresh less training images, beside sleep", ylabel="nats per image")
for ax in axes:
    ax.set_xlabel("training steps")
    ax.spines[["top", "right"]].set_visible(False)
axes[0].legend(frameon=False)
figure.savefig(FIGURES / "04_training.png", dpi=130)
plt.close(figure)

# %% [markdown]
# The two sets of images are not equally hard by themselves. *Sleep* has seen the pixels of
# neither, so it says by how much (the right panel is beside it). What *wake* loses on fresh images
# beyond that is what it has learned by heart. So part of what is called the amortization gap is
# plain overfitting, and more images (or images of the model's own) are the cure, not a bigger
# network.

# %%
for name, extra in zip(curves, by_heart[:, -1].tolist(), strict=True):
    print(f"{name:5s}: {extra:5.2f} nats per image of the training images are learned by heart")
for rows in curves.values():
    assert rows[-1][1] < rows[0][1]
if not SMOKE:
    assert float(by_heart[list(curves).index("wake"), -1]) > 0.2

# %% [markdown]
# ## The budget
#
# How much of the gap is the encoder's fault? `budget` also looks for the best law of the family,
# for each image by itself, and so splits the gap into the price of the family and the price of
# amortization. For comparison: a table, with free numbers for every image and no encoder at all
# (variational EM), put at the best poses of a search and raised by natural gradients of the ELBO.
# Its law has one head.

# %%
around = random_rotations(total, generator)
turns = PerImage(ConcentratedLaw(), around)
moves = PerImage(NormalShift(SHIFT_SD), torch.zeros(total, 2))
guides["table"] = cp.Guide(rotation=turns, shift=moves, volume=cp.Point(truth))
settings = cp.Schedule(learn_steps=2 if SMOKE else 5, coarse_order=1, max_order=2)
learner = NaturalLearner(settings, seed=11)
learner.learn(Half(model, guides["table"], fresh), stack, 0, order=2)

budgets: dict[str, Budget] = {}
print("\nnats per image, fresh images        bound  approximation   amortization")
for name, guide in guides.items():
    with seeded(12):
        found = budgets[name] = budget(model, gridded, guide, stack, fresh)
    parts = [float(p.mean()) for p in (found.bound, found.approximation, found.remainder)]
    print(f"  {name:5s} (evidence {float(found.evidence.mean()):.2f})", end="")
    print(f"       {parts[0]:10.2f} {parts[1]:14.2f} {parts[2]:14.2f}")
    whole = found.bound + found.approximation + found.remainder
    assert torch.allclose(whole, found.evidence, atol=1e-6)
    assert float(found.approximation.min()) > -1e-6 and float(found.remainder.min()) > -1e-6

# %% [markdown]
# In all encoders of this page the network costs more than the family does. (The column of the
# table says "amortization" too, but there nothing is amortized. It is what the steps have not
# reached, 0.1 nats when counted on cells of 15 degrees and 3 Angstrom; on these larger ones a law
# that is narrower than a cell pays for the rest.)

# %%
figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
names = list(budgets)
approximation = [float(budgets[name].approximation.mean()) for name in names]
remainder = [float(budgets[name].remainder.mean()) for name in names]
axes[0].bar(names, approximation, color=GREY, label="approximation (the family)")
axes[0].bar(names, remainder, bottom=approximation, color=BLUE, label="amortization (the encoder)")
axes[0].set_ylabel("gap on fresh images, nats per image")
axes[0].legend(frameon=False, loc="upper right")
axes[0].set_ylim(0, 1.35 * max(a + r for a, r in zip(approximation, remainder, strict=True)))
entropy = torch.cat(
    [
        -(part.log_posterior.exp() * part.log_posterior.clamp(min=-1e4)).sum((1, 2))
        for part in scores(gridded, truth, stack, fresh)
    ]
)
for name, color in (("sleep", BLUE), ("table", ORANGE)):
    axes[1].plot(entropy, budgets[name].gap, "o", ms=4, color=color, label=name)
axes[1].set(xlabel="entropy of the exact posterior, nats", ylabel="gap of an image, nats")
axes[1].legend(frameon=False)
for ax in axes:
    ax.spines[["top", "right"]].set_visible(False)
figure.savefig(FIGURES / "04_budget.png", dpi=130)
plt.close(figure)

if not SMOKE:
    encoders = [budgets[name] for name in menus]
    assert all(float(b.remainder.mean()) > float(b.approximation.mean()) for b in encoders)
    least = min(float(b.gap.mean()) for b in encoders)
    assert float(budgets["table"].gap.mean()) < least

# %% [markdown]
# The right panel asks which images are dear. To the encoder it is those with a sharp posterior
# (left end): they punish a `q` that is a little off or a little wide. The table, which adapts to
# each image, has least trouble with just these.

# %%
if not SMOKE:
    trend = torch.stack([entropy, budgets["sleep"].gap, budgets["table"].gap]).corrcoef()
    print(f"correlation of entropy and gap: sleep {trend[0, 1]:.2f}, table {trend[0, 2]:.2f}")
    assert float(trend[0, 1]) < -0.3 < float(trend[0, 2])

# %% [markdown]
# ## Exercises
#
# 1. Double the number of training images a few times. How does what *wake* learns by heart shrink?
# 2. Use one head instead of several (`ConcentratedLaw` without `Heads`). Which of the two gaps
#    grows, and for which images?
# 3. Sleep at a wrong model: train at the noise variance 0.5, then count at 1. What is lost, and on
#    which side of the budget?
# 4. Start the table at the sleep encoder's modes in place of a search (semi-amortized inference).
#    How many natural-gradient steps does it need to reach the table's gap?
# 5. Count by `Importance` (`cryoprob.inference.treatments.importance`): with the encoder as the
#    proposal and K draws, how does the bound rise with K?
