# %% [markdown]
# # 3. Modal EM and Einstein from noise
#
# **Question: can a reconstruction be made of nothing at all, and which methods notice?**
#
# Take images that hold noise and nothing else. Align each of them to a template, as if it were an
# image of the template's molecule, and average them as aligned. The average looks like the
# template. Done with a photograph of Einstein it is known as "Einstein from noise" (Shatsky et
# al. 2009; Henderson 2013, PNAS 110, 18037), and maps have been published that were suspected of
# it. Aligning is the E-step of *modal* EM: it takes the single best pose of each image and forgets
# all others.
#
# In our model there is nothing to align to: the truth is `V = 0`. We give modal EM and exact EM
# the same template, the same noise images, the same prior and the same M-step, and watch.

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import Tensor

import cryoprob as cp
from cryoprob.geometry.rotations import random_rotations
from cryoprob.inference.evidence import scores
from cryoprob.inference.m_step import power, solve_volume
from cryoprob.inference.treatments.modal import Modal
from cryoprob.models.simulate import draw_images, draw_optics, draw_poses

SMOKE = os.environ.get("CRYOPROB_TUTORIAL", "full") == "smoke"
HERE = Path(globals().get("__file__", "notebook")).parent
FIGURES = Path(os.environ.get("CRYOPROB_FIGURES", HERE / "figures"))
FIGURES.mkdir(parents=True, exist_ok=True)
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#7F7F7F"

BOX, PIXEL = 16, 6.0  # pixels along a side, Angstrom a pixel
PRETENDED = 0.03  # signal-to-noise ratio that images of the template would have
IMAGES = 300 if SMOKE else 3000
FRESH = 150 if SMOKE else 1000  # noise images that no map is made of
STEPS = 8 if SMOKE else 25
COUNTS = (50, 150, 300) if SMOKE else (50, 150, 500, 1500, 5000)

# %% [markdown]
# ## Noise, and a template
#
# The images are drawn from the model at `V = 0`, noise variance 1 a pixel. The template is a
# made-up molecule, scaled to the contrast that it would have in images of a realistic
# signal-to-noise ratio. The prior of the map is the most favorable one: the template's own power
# spectrum.

# %%
generator = torch.Generator().manual_seed(5)
template = cp.PHANTOMS["bead-walk"](BOX, PIXEL, generator)
total = max(IMAGES, *COUNTS) + FRESH
optics = draw_optics(total, generator, cp.Microscope(defocus=(6000.0, 12000.0)))
model = cp.ParticleModel(
    cp.FourierVoxels(BOX),
    cp.UniformRotation().discretize(1),
    cp.GaussianShift(4.0).discretize(12.0, 6.0),
    cp.RadialNoise(torch.ones(1, BOX // 2 + 2)),
    PIXEL,
)
poses, variance = draw_poses(model, template, optics, total, seed=6)
template = template * float(PRETENDED / variance.mean()) ** 0.5
nothing = torch.zeros_like(template)
images = torch.cat(list(draw_images(model, nothing, optics, poses, seed=7)))
stack = cp.ParticleStack.from_arrays(images, PIXEL, optics)
fresh = torch.arange(total - FRESH, total)
spectrum = power(template)
model.linear_volume.tau2.copy_(spectrum.clamp(min=1e-3 * float(spectrum.max())))
print(f"{IMAGES} images of noise, {BOX} x {BOX} pixels of variance 1; {FRESH} more kept apart")

# %% [markdown]
# ## Two E-steps, one M-step
#
# In `cryoprob` how the poses are treated is a choice in the guide; model and M-step do not change.


# %%
def guided(treatment: type[cp.Exact] | type[Modal], volume: Tensor) -> cp.Guide:
    """A guide that treats both pose sites alike."""
    return cp.Guide(rotation=treatment(), shift=treatment(), volume=cp.Point(volume))


def em_step(guide: cp.Guide, index: Tensor) -> Tensor:
    """The next map, from the images ``index``, at the guide's own."""
    here = guide.volume.coefficients.detach()
    equations = cp.e_step(model, guide, stack, index).insertion.equations()
    return solve_volume(equations, model.linear_volume.tau2, here).volume


def correlation(one: Tensor, other: Tensor) -> float:
    """Of two maps, in [-1, 1]."""
    return float((one * other).sum() / (one.norm() * other.norm()))


# %% [markdown]
# Three meters:
#
# * the correlation of the map with the template, the usual one;
# * its strength, `|V| / |template|`;
# * the **null test**: on noise images that no map was made of, the log evidence of the map less
#   that of no map at all, `log p(x | V) - log p(x | 0)`, in nats per image. It is a log Bayes
#   factor, and it needs no template. A map that is made up predicts fresh images worse than
#   nothing does.


# %%
def evidence(volume: Tensor) -> Tensor:
    """Log evidence of the fresh images, poses summed out, nats [n]."""
    return torch.cat([part.log_evidence for part in scores(model, volume, stack, fresh)])


without = evidence(nothing)
meters = {"correlation": correlation, "strength": lambda v, t: float(v.norm() / t.norm())}


def measured(volume: Tensor) -> dict[str, float]:
    """All three meters of a map."""
    found = {name: meter(volume, template) for name, meter in meters.items()}
    return found | {"null test": float((evidence(volume) - without).mean())}


every = torch.arange(IMAGES)
histories: dict[str, list[dict[str, float]]] = {}
maps: dict[str, list[Tensor]] = {}
for name, treatment in (("modal EM", Modal), ("exact EM", cp.Exact)):
    guide = guided(treatment, template)
    maps[name] = [template]
    for _ in range(STEPS):
        guide.volume.coefficients.data = em_step(guide, every)
        maps[name].append(guide.volume.coefficients.detach().clone())
    histories[name] = [measured(volume) for volume in maps[name]]
    for step in sorted({1, 2, STEPS}):
        row = histories[name][step]
        print(
            f"{name}, step {step:2d}: correlation with the template {row['correlation']:6.3f},"
            f" strength {row['strength']:.3f}, null test {row['null test']:8.4f} nats per image"
        )

# %%
figure, axes = plt.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
titles = {
    "correlation": "correlation with the template",
    "strength": "strength, |V| / |template|",
    "null test": "null test, nats per image",
}
for ax, (meter, title) in zip(axes, titles.items(), strict=True):
    for (name, rows), color in zip(histories.items(), (ORANGE, BLUE), strict=True):
        ax.plot([row[meter] for row in rows], "o-", ms=3, color=color, label=name)
    ax.axhline(0, color=GREY, lw=0.8)
    ax.set(title=title, xlabel="EM step (0: the template)")
    ax.spines[["top", "right"]].set_visible(False)
axes[0].legend(frameon=False)
figure.savefig(FIGURES / "03_meters.png", dpi=130)
plt.close(figure)

# %% [markdown]
# ## What the meters say
#
# Both E-steps see the template in the noise at first: each weighs the poses by how well the noise
# happens to agree. So the correlation after a single step tells them apart badly. It asks what a
# map looks like and not how much of it there is, and a map that is fading away can keep its looks.
#
# The strength does tell them apart. Exact EM knows how little the agreement means: summed over all
# poses, the weights nearly cancel, and with every step the map becomes fainter. Modal EM keeps one
# pose an image, the luckiest, and takes its luck for signal. Its map does not fade: the template's
# shape drifts into some other shape, which noise supports as well, and there it stays.

# %%
last = {name: rows[-1] for name, rows in histories.items()}
assert last["modal EM"]["strength"] > 2 * last["exact EM"]["strength"]
assert histories["modal EM"][1]["correlation"] > 0.3
assert last["modal EM"]["null test"] < 3 * last["exact EM"]["null test"] < 0

views = {
    "template": template,
    "modal, step 1": maps["modal EM"][1],
    f"modal, step {STEPS}": maps["modal EM"][-1],
    "exact, step 1": maps["exact EM"][1],
    f"exact, step {STEPS}": maps["exact EM"][-1],
}
figure, axes = plt.subplots(1, len(views), figsize=(11, 2.6), layout="constrained")
reach = float(template.sum(0).abs().max())
for ax, (name, volume) in zip(axes, views.items(), strict=True):
    ax.imshow(volume.sum(0), cmap="gray", origin="lower", vmin=-0.4 * reach, vmax=0.8 * reach)
    ax.set_title(name, fontsize=10)
    ax.set_xticks([])
    ax.set_yticks([])
figure.suptitle("Projections of the maps, one gray scale", fontsize=11)
figure.savefig(FIGURES / "03_maps.png", dpi=130)
plt.close(figure)

# %% [markdown]
# ## More data do not help
#
# An average of images at random poses knows nothing of the template: its correlation with it
# scatters around 0, and the more images there are the fainter it becomes. An average of images
# that were *aligned* does not fade. The bias is the same in every image, and what is the same in
# every image does not average out; more images only bring it out more clearly.


# %%
def at_random(index: Tensor) -> Tensor:
    """The map of images at poses that have nothing to do with them."""
    drawn = random_rotations(total, torch.Generator().manual_seed(8))
    given = cp.Known(drawn.float()), cp.Known(torch.zeros(total, 2))
    return em_step(cp.Guide(rotation=given[0], shift=given[1], volume=cp.Point(nothing)), index)


ways = {"aligned to the template": lambda some: em_step(guided(Modal, template), some)}
ways["at random poses"] = at_random
growth: dict[str, list[float]] = {name: [] for name in ways}
left: dict[str, list[float]] = {name: [] for name in ways}
for count in COUNTS:
    for name, make in ways.items():
        volume = make(torch.arange(count))
        growth[name].append(correlation(volume, template))
        left[name].append(meters["strength"](volume, template))
        print(
            f"{count:5d} images of noise {name}: correlation {growth[name][-1]:6.3f},"
            f" strength {left[name][-1]:.3f}"
        )
assert min(growth["aligned to the template"]) > 0.3
assert growth["aligned to the template"][-1] >= growth["aligned to the template"][0]
assert max(map(abs, growth["at random poses"])) < 0.3
if not SMOKE:
    assert left["at random poses"][-1] < 0.5 * left["aligned to the template"][-1]

# %% [markdown]
# ## Two halves do not help either
#
# The standard safeguard of the field is to make two maps of two halves of the images and to
# compare them, shell by shell of spatial frequency (the Fourier shell correlation, FSC). It guards
# against noise that both maps share, but not against a template that both share. The halves below
# are independent noise.

# %%
halves = torch.arange(0, IMAGES, 2), torch.arange(1, IMAGES, 2)
curves = {}
for name, treatment in (("modal EM", Modal), ("exact EM", cp.Exact)):
    pair = [em_step(guided(treatment, template), half) for half in halves]
    curves[name] = cp.fsc(*pair)
    seen = ", ".join(f"{value:.2f}" for value in curves[name][1:5])
    print(f"{name}, one step, two halves of noise: FSC of shells 1 to 4 is {seen}")
assert float(curves["modal EM"][1:3].min()) > 0.143

figure, axes = plt.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
for ax, values, label in zip(axes, (growth, left), list(titles.values())[:2], strict=False):
    for name, color in zip(ways, (ORANGE, GREY), strict=True):
        ax.semilogx(COUNTS, values[name], "o-", ms=4, color=color, label=name)
    ax.axhline(0, color=GREY, lw=0.8)
    ax.set(xlabel="images of noise", title=label, ylim=(-0.3, 1.05))
shells = torch.arange(1, BOX // 2)
for (name, curve), color in zip(curves.items(), (ORANGE, BLUE), strict=True):
    axes[2].plot(shells, curve[1 : BOX // 2], "o-", ms=4, color=color, label=name)
axes[2].axhline(0.143, color=GREY, lw=0.8, ls="--")
axes[2].text(1, 0.16, "0.143", color=GREY, fontsize=9)
width = BOX * PIXEL
axes[2].set_xticks(shells.tolist(), [f"{width / int(s):.3g}" for s in shells])
axes[2].set(xlabel="resolution, Angstrom", title="FSC of two halves", ylim=(-0.3, 1.05))
axes[0].legend(frameon=False, loc="upper left")
axes[2].legend(frameon=False, loc="lower left")
for ax in axes:
    ax.spines[["top", "right"]].set_visible(False)
figure.savefig(FIGURES / "03_more_data_and_halves.png", dpi=130)
plt.close(figure)

# %% [markdown]
# Exact EM's first step fails this test as well: a common template is a common template. What it
# does not do is believe in the result. The null test on fresh images asks whether the map
# predicts, and no template can fake that. For a fit of your own,
# `cryoprob.inference.model_comparison.held_out` gives the log evidence of images kept apart.
#
# ## Exercises
#
# 1. Give modal EM a *fainter* template (`PRETENDED = 0.003`) and a stronger one. Does the strength
#    of the map that it settles at depend on where it started?
# 2. Keep the template, but put a real signal into the images: half of them of another molecule.
#    After how many steps has the template left the map, for each of the two methods?
# 3. Re-estimate the noise variance at each step
#    (`cryoprob.inference.m_step.update_noise(model, statistics)`). The images hold nothing but
#    noise of variance 1; what does each method find?
# 4. Make the grid of rotations finer (`discretize(2)`). There are more poses to be lucky in. What
#    happens to modal EM's strength, and to exact EM's?
# 5. The best of K independent normal scores grows as sqrt(2 log K). Use it to predict the strength
#    of modal EM's first map from the number of poses.
