"""What happens when: bands, grids, masks and stopping of a refinement.

And of a start from nothing.
"""

from dataclasses import dataclass, fields
from math import isfinite
from typing import Any

from cryoprob.checks import InputError, did_you_mean, require

__all__ = ["OF_PRESETS", "VOLUMES", "Schedule"]

VOLUMES = ("point", "gaussian")
"""What q of the map may be."""

OF_PRESETS = ("zdim", "width", "layers", "gaussians", "epochs", "beta", "anneal", "kl_start")
"""Settings that no family has: of conformations that move, and of training by gradients alone."""

_CHOICES = {
    "bound": ("none", "points", "probable", "cells"),
    "interpolation": ("linear", "nearest"),
    "m_step": ("exact", "diagonal", "gradient"),
    "volume": VOLUMES,
}
"""What may stand for words."""

_POSITIVE = {
    "shift_step",
    "max_iterations",
    "classes",
    "beam",
    "learn_draws",
    "width",
    "layers",
    "gaussians",
    "epochs",
    "starts",
    "start_steps",
    "start_images",
    "start_box",
    "start_radius",
}
"""Numbers above zero; all others may be zero, and none is below."""


@dataclass(frozen=True)
class Schedule:
    """Settings of exact EM; each can be set from the command line with ``--set name=value``.

    Attributes
    ----------
    max_iterations
        Refinement steps at most.
    coarse_order
        Order of the rotation grid that is searched completely at each step.
    max_order
        Finest order; grids grow as the resolution and the sharpness of the posteriors ask for it.
    mass
        Posterior mass kept when going from a grid to the next finer one; 1 keeps everything.
    shift_extent
        Search range of the shifts, pixels.
    shift_step
        Spacing of the coarsest shift grid, pixels; halved with every order.
    margin
        Shells beyond the current resolution that take part (frequency marching).
    max_radius
        Largest shell used; 0 for all (box / 2 - 1).
    m_step
        Of the volume: ``exact`` (conjugate gradients to the maximum), ``diagonal`` (RELION's, not
        the maximizer), or ``gradient``, one step of steepest ascent in the diagonal's metric to
        the top of its line (gradient EM).
    interpolation
        Of slices, "linear" or "nearest".
    volume
        q of the map: "point", or "gaussian" (a mean and a variance for every Fourier mode, whose
        divergence from the prior the metrics then have).
    classes
        Volumes, of which every image shows one; their references are split by chance where one
        map is given for several.
    noise, shift_sigma, tau2, contrast
        Whether these are re-estimated at each step (contrast: amplitude and noise factor per
        image).
    turn
        Turn the grid at random at each step.
    gain
        Nats per image below which a step counts as no progress; two such steps raise the order or
        stop.
    beam
        Rotations kept per image at each coarser grid where the best pose alone is wanted.
    bound
        Of a branch and bound for the best pose that starts from what the beam found: "probable",
        "cells" or "points"; "none" leaves it at that.
    polish
        Gauss-Newton steps of such a search off the grid; 0 stays on it.
    draws
        Draws of q per image in an E-step (and head), where q is a law.
    learn_draws
        Draws of q per image in a training step.
    learn_steps
        Training steps of q before each E-step.
    learn_rate
        Of Adam.
    warm_steps
        Training steps of an encoder before the first E-step.
    batch
        Images of a training step. Where it, ``draws``, ``learn_steps``, ``learn_rate`` or
        ``warm_steps`` is 0, the family sets it.
    zdim
        Coordinates of a continuous conformation.
    width, layers
        Of networks: hidden units, and layers of them.
    gaussians
        Gaussians of a molecule that starts from nothing.
    epochs
        Passes over the images where volume and q are raised together by gradient steps.
    beta
        Weight of the divergence in such training, the noise held at its start; 0 counts it once
        and learns the noise. (Presets set these.)
    anneal
        With ``beta``: factor of the held noise at the start, falling to 1 while the band grows.
    kl_start
        Weight of q's divergence at the start of such training; rises to 1 in the first 60 % (KL
        annealing). 0 leaves it to the preset: 1/20 in the cryoDRGN family where the noise is
        learned, else 1.
    starts
        Random starts from nothing.
    start_steps
        Stochastic EM steps of each start.
    start_images
        Images of a stochastic step.
    start_box
        Box of the starts (images are cropped to it).
    start_radius
        Largest shell of the starts.
    """

    max_iterations: int = 30
    coarse_order: int = 2
    max_order: int = 5
    mass: float = 0.999
    shift_extent: float = 6.0
    shift_step: float = 2.0
    margin: int = 5
    max_radius: int = 0
    m_step: str = "exact"
    interpolation: str = "linear"
    volume: str = "point"
    classes: int = 1
    noise: bool = True
    shift_sigma: bool = True
    tau2: bool = True
    contrast: bool = False
    turn: bool = True
    gain: float = 0.05
    beam: int = 32
    bound: str = "none"
    polish: int = 0
    draws: int = 0
    learn_draws: int = 1
    learn_steps: int = 0
    learn_rate: float = 0.0
    warm_steps: int = 0
    batch: int = 0
    zdim: int = 0
    width: int = 256
    layers: int = 3
    gaussians: int = 300
    epochs: float = 20.0
    beta: float = 0.0
    anneal: float = 1.0
    kl_start: float = 0.0
    starts: int = 4
    start_steps: int = 80
    start_images: int = 150
    start_box: int = 32
    start_radius: int = 7

    def __post_init__(self) -> None:
        self._check_numbers()
        order = 0 <= self.coarse_order <= self.max_order
        expected = "0 <= coarse_order <= max_order"
        require(order, "schedule", expected=expected, got=f"{self.coarse_order}, {self.max_order}")
        require(0 < self.mass <= 1, "mass", expected="in (0, 1]", got=str(self.mass))
        for name, known in _CHOICES.items():
            value, words = getattr(self, name), " or ".join(known)
            near = did_you_mean(str(value), known)
            require(value in known, name, expected=words, got=repr(value), remedy=near)
        fits = self.classes == 1 or self.volume == "point"
        require(fits, "volume", expected="point, where there are classes", got=self.volume)
        fits = self.anneal == 1 or (self.anneal > 1 and self.beta > 0)
        wanted = "1, or above 1 beside a beta, which holds the noise"
        require(fits, "anneal", expected=wanted, got=f"{self.anneal:g}")
        fits = 0 <= self.kl_start <= 1
        require(fits, "kl_start", expected="from 0 to 1", got=f"{self.kl_start:g}")

    def _check_numbers(self) -> None:
        """Raise InputError unless every number is finite, and of the sign that it must have."""
        for item in fields(Schedule):
            value, positive = getattr(self, item.name), item.name in _POSITIVE
            if isinstance(item.default, bool | str):
                continue
            fits = isfinite(value) and (value > 0 or (value == 0 and not positive))
            wanted = "a positive number" if positive else "0 or more"
            require(fits, item.name, expected=wanted, got=str(value))

    def only(self, *names: str) -> "Schedule":
        """A schedule with these settings, all others at their defaults."""
        return Schedule(**{name: getattr(self, name) for name in names})

    def radius(self, box: int, resolution_shell: int) -> int:
        """Largest shell used at a resolution, within what the box and the user allow."""
        limit = box // 2 - 1
        if self.max_radius:
            limit = min(limit, self.max_radius)
        return max(2, min(limit, resolution_shell + self.margin))

    def order(self, resolution_shell: int) -> int:
        """Grid order that resolves a shell: ``step <= 1.6 / shell`` for a particle of 0.8 box."""
        order = self.coarse_order
        while order < self.max_order and 1.0472 / 2**order > 1.6 / max(resolution_shell, 1):
            order += 1
        return order

    @classmethod
    def parse(cls, settings: dict[str, str]) -> "Schedule":
        """A schedule from words, as the command line has them.

        Raises
        ------
        InputError
            For an unknown name or a value that cannot be, naming what there is.
        """
        return cls(**cls.values(settings))

    @classmethod
    def values(cls, settings: dict[str, str]) -> dict[str, Any]:
        """Values from words, to be put into another schedule.

        Raises
        ------
        InputError
            For an unknown name or a value of the wrong kind, naming what there is.
        """
        kinds = {item.name: type(getattr(cls(), item.name)) for item in fields(cls)}
        values: dict[str, Any] = {}
        for name, text in settings.items():
            where = f"--set {name}={text}"
            if name not in kinds:
                expected, near = "a name that `cryoprob settings` lists", did_you_mean(name, kinds)
                raise InputError(where, expected=expected, got=repr(name), remedy=near)
            values[name] = _convert(where, text, kinds[name])
        return values


def _convert(where: str, text: str, kind: type) -> object:
    if kind is bool:
        known = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        require(text.lower() in known, where, expected="true or false", got=repr(text))
        return known[text.lower()]
    try:
        return kind(text)
    except ValueError:
        raise InputError(
            where, expected=f"a value of type {kind.__name__}", got=repr(text)
        ) from None
