"""Volume and q raised together by gradient steps on minibatches, from nothing or from a start.

How autoencoders are trained, and variational ones; no search, no M-step. The band grows with the
steps, and the noise starts at the images' power and follows the residual, so that the likelihood
is tempered while the volume explains little and sharpens by itself.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import cos, pi
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import Adam

from cryoprob.checks import require
from cryoprob.fourier.bands import full_band
from cryoprob.inference.guide import Guide
from cryoprob.inference.half import Half, pack_half, unpack_half
from cryoprob.inference.learn import check_finite, local_parameters, seeded, trained
from cryoprob.inference.least_noise import least_noise
from cryoprob.inference.objectives.base import Objective
from cryoprob.inference.solvent import Solvent
from cryoprob.inference.treatments.known import Known
from cryoprob.models import sites
from cryoprob.models.particle_model import ParticleModel
from cryoprob.particles import Batch, ParticleStack

__all__ = ["Joint", "JointState", "follow"]

_RECORD = 50
_NOISE_RATE = 0.1
_STEEPEST = 100.0

_PLAIN = ("iteration", "done", "history")


@dataclass(eq=False)
class JointState:
    """Where the training stands.

    Attributes
    ----------
    half
        Model, guide and images; the optimizer's state between steps.
    iteration
        Records so far, each of 50 gradient steps.
    """

    half: Half
    iteration: int = 0
    done: bool = False
    history: list[dict[str, Any]] = field(default_factory=list)

    def pack(self) -> dict[str, Any]:
        """Everything a checkpoint needs, as tensors and plain values."""
        plain = {name: getattr(self, name) for name in _PLAIN}
        return {**plain, "half": pack_half(self.half)}

    def unpack(self, content: dict[str, Any]) -> None:
        """Take up the state of a checkpoint; the half's parts are there already."""
        for name in _PLAIN:
            setattr(self, name, content[name])
        unpack_half(self.half, content["half"])


@dataclass(frozen=True)
class Joint:
    """Gradient EM of a guide whose local sites are known or laws: one Adam for volume and q.

    Parameters
    ----------
    objective
        What is raised, with the log prior of the volume (and the terms that count once):
        ``Elbo``, ``Iwae``, ``ProfileLogJoint``, ``Symmetric`` or ``RingCorrelation``.
    seed
        Of the minibatches, of the draws, and of the first volume where the given one is zero.
    steps
        Gradient steps in all.
    batch
        Images of each.
    rate, volume_rate
        Of Adam: for q, and for coefficients in units of their usual size.
    first_radius, radius
        Largest shell at the start, and after ``marching`` of the steps.
    marching
        Share of the steps in which the band grows; rates fall in the rest.
    noise
        Whether noise spectra follow the residual.
    anneal
        Factor of held noise spectra at the start; it falls to 1, geometrically, while the band
        grows. (Spectra that follow the residual start high by themselves; searches see the held
        ones.)
    kl_start
        Weight of q's divergence (of Diracs: their log prior) at the start; it rises to 1,
        geometrically, up to ``marching`` of the steps. Below 1, z tells of the images before a
        learned noise spectrum has explained away what it could tell (KL annealing: Bowman et al.
        2016, CoNLL).
    held
        Sites (``volume``, ``rotation``, ``shift``, ``conformation``, ``contrast``, ``defocus``)
        that stay as they are, and up to which share of the steps: a pose-only phase is
        ``{"volume": 0.3, "conformation": 0.3}``. A contrast that is integrated out stays at 1:
        at a volume of chance it would go to 0, and come out of there with either sign.
    teacher
        What trains q instead, where given (``Sleep``: wake-sleep); the objective then trains the
        volume alone.
    solvent
        Mask of volumes that are maps.

    Notes
    -----
    Zhong et al. 2020 (cryoDRGN) and Levy et al. 2022 (CryoAI) train so, at a fixed noise level
    and with networks as volumes.
    """

    objective: Objective
    seed: int
    steps: int = 3000
    batch: int = 64
    rate: float = 1e-3
    volume_rate: float = 0.05
    first_radius: int = 3
    radius: int = 10
    marching: float = 0.6
    noise: bool = True
    anneal: float = 1.0
    kl_start: float = 1.0
    held: Mapping[str, float] = field(default_factory=dict)
    teacher: Objective | None = None
    solvent: Solvent = Solvent("sphere")  # noqa: RUF009 (frozen)

    def __post_init__(self) -> None:
        unknown = sorted(set(self.held) - set(sites.LATENT))
        require(not unknown, "held", expected=" or ".join(sites.LATENT), got=", ".join(unknown))
        fits = self.anneal == 1 or (self.anneal > 1 and not self.noise)
        wanted = "1, or above 1 with the noise held (beta)"
        require(fits, "anneal", expected=wanted, got=f"{self.anneal:g}")
        fits = 0 < self.kl_start <= 1
        require(fits, "kl_start", expected="in (0, 1]", got=f"{self.kl_start:g}")
        self.objective.weighted(self.kl_start)  # refused where there is nothing to weigh

    @property
    def records(self) -> int:
        """How often :meth:`step` is called in all."""
        return -(-self.steps // _RECORD)

    def step(self, state: JointState, stack: ParticleStack) -> dict[str, Any]:
        """Fifty gradient steps; returns (and appends) their record."""
        began, half = perf_counter(), state.half
        first = state.iteration * _RECORD
        count = min(_RECORD, self.steps - first)
        with seeded(self.seed * 100003 + state.iteration), trained(half):
            voxels = half.guide.volume.coefficients.data
            if state.iteration == 0 and not voxels.any():
                generator = torch.Generator().manual_seed(self.seed)
                voxels.copy_(half.model.volume.start(generator))
            optimizer = self._optimizer(half)
            values = [
                self._gradient_step(half, stack, optimizer, first + n, n % 10 == 0)
                for n in range(count)
            ]
        half.optimizer = optimizer.state_dict()
        state.iteration += 1
        state.done = state.iteration * _RECORD >= self.steps
        record = self._record(state, torch.stack(values), count)
        state.history.append(record)
        return {**record, "seconds": perf_counter() - began}

    def _optimizer(self, half: Half) -> Adam:
        free = {"params": local_parameters(half.guide)}
        optimizer = Adam([free, {"params": [half.guide.volume.coefficients]}])
        if half.optimizer:
            optimizer.load_state_dict(half.optimizer)
        return optimizer

    def _gradient_step(
        self, half: Half, stack: ParticleStack, optimizer: Adam, step: int, noise: bool
    ) -> Tensor:
        """One step up the mean objective, the map's prior shared out among the images."""
        model = half.model
        self._schedule(model, optimizer, step)
        with self._heated(model, step):
            return self._ascend(half, stack, optimizer, step, noise)

    @contextmanager
    def _heated(self, model: ParticleModel, step: int) -> Iterator[None]:
        """Held noise spectra larger, as annealing has it at this step."""
        held = model.noise.sigma2
        if self.anneal == 1:
            yield
            return
        model.noise.sigma2 = held * self.anneal ** self._left(step)
        try:
            yield
        finally:
            model.noise.sigma2 = held

    def _left(self, step: int) -> float:
        """The part of the band's growth that is to come."""
        return max(0.0, 1 - step / max(self.marching * self.steps, 1e-9))

    def _ascend(
        self, half: Half, stack: ParticleStack, optimizer: Adam, step: int, noise: bool
    ) -> Tensor:
        model, guide = half.model, self._guide(half, len(stack), step)
        like = model.noise.sigma2
        index = half.index[torch.randint(len(half.index), (self.batch,))]
        batch = stack.batch(index, full_band(stack.box), like.dtype, like.device)
        sigma2 = like.requires_grad_(noise and self.noise)
        volume = guide.volume.coefficients
        objective = self.objective.weighted(self.kl_start ** self._left(step))
        value = objective(model, guide, volume, batch)
        check_finite(value, index, stack.image_names, f"gradient step {step + 1}")
        prior = model.log_prior_volume(volume) / len(half.index)
        optimizer.zero_grad()
        (-value.mean() - prior).backward()  # type: ignore[no-untyped-call]
        if self.teacher is not None:
            self._teach(half, batch)
        self._hold(guide, step)
        clip_grad_norm_(local_parameters(guide), _STEEPEST, error_if_nonfinite=True)
        optimizer.step()
        guide.forget()
        if model.volume.is_map and sites.VOLUME not in self._held(step):
            volume.data = self.solvent(volume.data, model.pixel_size)
        gradient = sigma2.grad
        model.noise.sigma2 = sigma2.detach()
        if gradient is not None:
            follow(model, -gradient, batch, _NOISE_RATE)
        return value.detach().mean()

    def _held(self, step: int) -> list[str]:
        """The sites that stay as they are at this step."""
        return [name for name, share in self.held.items() if step < share * self.steps]

    def _guide(self, half: Half, total: int, step: int) -> Guide:
        """The half's guide; while a contrast that it integrates out is held, with that at 1."""
        guide = half.guide
        if not guide.sums_contrast or sites.CONTRAST not in self._held(step):
            return guide
        ones = Known(half.model.noise.sigma2.new_ones(total))
        return guide.replaced(contrast=ones)

    def _hold(self, guide: Guide, step: int) -> None:
        """Take the gradients off what is held at this step."""
        parts, held = {sites.VOLUME: guide.volume, **guide.sites}, self._held(step)
        free = {p for name, part in parts.items() if name not in held for p in part.parameters()}
        for name in held:
            for parameter in parts[name].parameters() if name in parts else ():
                if parameter not in free:  # an encoder may be shared
                    parameter.grad = None

    def _teach(self, half: Half, batch: Batch) -> None:
        """The teacher's gradients for q in the place of the objective's."""
        assert self.teacher is not None
        parameters = local_parameters(half.guide)
        for part in parameters:
            part.grad = None
        volume = half.guide.volume.coefficients.detach()
        learned = self.teacher(half.model, half.guide, volume, batch)
        (-learned.mean()).backward(inputs=parameters)  # type: ignore[no-untyped-call]

    def _schedule(self, model: ParticleModel, optimizer: Adam, step: int) -> None:
        """Band and rates of a step: the band grows first, then the rates fall to zero."""
        share = step / self.steps
        growth = (self.radius - self.first_radius) * min(1.0, share / max(self.marching, 1e-9))
        radius = self.first_radius + int(growth)
        if radius != model.band.radius:
            model.volume.set_band(radius)
        late = max(0.0, (share - self.marching) / max(1 - self.marching, 1e-9))
        fall = (1 + cos(pi * late)) / 2
        rates = self.rate, self.volume_rate * model.volume.unit
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * fall

    def _record(self, state: JointState, values: Tensor, count: int) -> dict[str, Any]:
        band = state.half.model.band
        weight = self.kl_start ** self._left((state.iteration - 1) * _RECORD)
        weighed = "" if weight == 1 else f", divergence times {weight:.2g} and more"
        return {
            "iteration": state.iteration,
            "bound": float(values.mean()),
            "kind": f"{self.objective.kind}, nats per image, full band{weighed}",
            "resolution_A": band.box * state.half.model.pixel_size / band.radius,
            "radius": band.radius,
            "images": count * self.batch,
        }


def follow(model: ParticleModel, gradient: Tensor, batch: Batch, rate: float) -> None:
    """Move noise spectra toward the residual that the objective's own gradient tells of.

    ``d log p / d sigma2 = (residual / sigma2 - numbers) / (2 sigma2)`` for each image and shell,
    whatever weights the objective gives its draws. No variance falls below what its type
    can tell from none (:func:`least_noise`).

    Parameters
    ----------
    gradient
        Of the mean objective of the batch in sigma2, [G, S].
    batch
        The images.
    rate
        Part of the way, geometric.
    """
    sigma2 = model.noise.sigma2
    numbers = full_band(model.band.box).numbers_per_shell().to(sigma2)
    count = torch.bincount(batch.group, minlength=len(sigma2))
    share = (count / count.sum()).to(sigma2)[:, None].clamp(min=1e-12)
    found = sigma2 * (1 + 2 * sigma2 * gradient / (share * numbers.clamp(min=1)))
    found = found.maximum(least_noise(_mean_power(batch, sigma2), numbers, sigma2.dtype))
    seen = count > 0
    mixed = torch.exp((1 - rate) * sigma2.log() + rate * found.log())
    sigma2[seen] = mixed[seen]


def _mean_power(batch: Batch, like: Tensor) -> Tensor:
    """Mean sum of squares of each group's images in each shell, as ``like`` [G, S]."""
    group = batch.group.to(like.device)
    total = torch.zeros_like(like).index_add_(0, group, batch.power.to(like))
    return total / torch.bincount(group, minlength=len(like)).clamp(min=1)[:, None]
