"""Natural gradients for the law of a pose: every step solves a Gaussian's own Newton equations.

q of a rotation is a normal law of the chart's coordinates around a mode, q of a shift a normal
law. With ``z`` the five coordinates in units of q's own widths, and ``f`` the log joint density
per volume of ``z``, a step of rate ``r`` takes precision and mean (in these units) from 1 and 0 to

    P = (1 - r) 1 + r E_q[-f''],        r P^-1 E_q[f'],

of which the precision keeps the blocks that q has. That is variational online Newton (Khan & Rue
2023, JMLR 24, 281, sec. 3), whose fixed point is the optimum of Opper & Archambeau (2009), Neural
Computation 21, 786. No draws are needed:

* over the shift the expectation is closed: the mean of a wave under a normal law is the wave at
  the law's mean, damped by exp(-variance of its phase / 2), and shifts keep a slice's power;
* over the rotation it is a sum over 13 points, exact for polynomials of degree 5: the center and
  the vertices of an icosahedron (Stroud 1971, Approximate Calculation of Multiple Integrals);
* derivatives by the rotation are moments of values: E f' = E z f and E f'' = E (z z^T - 1) f
  (Stein's lemma), so that what counts is the posterior over the width of q, not its kinks.
"""

from dataclasses import dataclass, fields
from math import pi

import torch
from torch import Tensor

from cryoprob.fourier.gaussian_map import AnyMap, mean_of, power_of
from cryoprob.inference.filtered import Filtered
from cryoprob.inference.laws.rotations import ConcentratedLaw
from cryoprob.inference.laws.shifts import NormalShift
from cryoprob.models.image_likelihood import shift_phase
from cryoprob.models.particle_model import ParticleModel
from cryoprob.models.poses.rotation_support import SCALE_AT_ORIGIN, RotationChart

__all__ = ["NaturalAscent", "Stand"]

_CHART = RotationChart()

_STEEPEST = 4.0
"""Factor by which a step may change a precision."""

_LONGEST = 1.5
"""Widths of q by which a step may move its mean."""

_SETTLED = 5e-3
"""Nats that a step must change for another to be tried."""


@dataclass(frozen=True, eq=False)
class Stand:
    """Where the laws of n images stand.

    Attributes
    ----------
    rotation, shift
        Numbers of the laws, [n, size] each.
    bound
        ELBO of each image above its log density under noise alone, nats, [n].
    gradient, information
        E_q[f'] and E_q[-f''] of three turns and two shifts, in units of q's widths, [n, 5] and
        [n, 5, 5].
    """

    rotation: Tensor
    shift: Tensor
    bound: Tensor
    gradient: Tensor
    information: Tensor

    def take(self, rows: Tensor) -> "Stand":
        """Those of some images (a copy)."""
        return Stand(*(getattr(self, item.name)[rows] for item in fields(self)))

    def put(self, rows: Tensor, part: "Stand") -> None:
        """Write those of some images in place."""
        for item in fields(self):
            getattr(self, item.name)[rows] = getattr(part, item.name)


@dataclass(frozen=True, eq=False)
class NaturalAscent:
    """Raises the bounds of laws of poses at a volume, image by image.

    Parameters
    ----------
    model
        Its volume, band, noise, pixel size and shift width score the poses.
    volume
        Value of the ``volume`` site, or a law of it.
    rotation, shift
        The laws; one of fixed width moves its mean alone.
    """

    model: ParticleModel
    volume: AnyMap
    rotation: ConcentratedLaw
    shift: NormalShift

    def climb(self, images: Filtered, stand: Stand, steps: int) -> Stand:
        """At most ``steps`` steps for every image; no bound falls.

        A step that failed is tried again at half the rate; an image whose bound a step would
        change by less than 0.005 nats is left there.
        """
        going = torch.arange(len(images), device=stand.bound.device)
        stand, rate = stand.take(going), torch.ones_like(stand.bound)
        for _ in range(steps):
            if not len(going):
                break
            now = stand.take(going)
            trial = self.at(images.take(going), *self._moved(now, rate[going]))
            better = trial.bound > now.bound
            stand.put(going[better], trial.take(better))
            rate[going] = torch.where(better, (2 * rate[going]).clamp(max=1), rate[going] / 2)
            going = going[~((trial.bound - now.bound).abs() < _SETTLED)]
        return stand

    def at(self, images: Filtered, rotation: Tensor, shift: Tensor) -> Stand:
        """The bounds of laws of some numbers, and what the next step needs."""
        turns, moves = self.rotation(rotation), self.shift(shift)
        mean, width = moves.mean, moves.stddev
        points, weights = _icosahedron(rotation)
        lower = turns.scale_tril / SCALE_AT_ORIGIN
        rotations = _CHART(torch.einsum("kb,nab->kna", points, lower)) @ turns.mode
        values, slopes, bends = self._look(images, rotations, weights, mean, width)
        share, precision = weights[:, None] * points, self.model.shift.sigma**-2
        expected = weights @ values
        prior = torch.log(precision / (2 * pi)) - (mean**2 + width**2).sum(-1) * precision / 2
        bound = expected + prior + turns.entropy() + moves.entropy()
        gradient = values.T @ share, weights @ slopes - mean * width * precision
        one = torch.eye(3).to(lower)
        curved = torch.einsum("ka,kb,kn->nab", share, points, values)
        turned = lower.mT @ lower + expected[:, None, None] * one - curved
        moved = torch.diag_embed(width**2 * precision) - bends
        mixed = -torch.einsum("ka,nkb->nab", share, slopes)
        information = torch.cat(
            [torch.cat([turned, mixed], 2), torch.cat([mixed.mT, moved], 2)], 1
        )
        return Stand(rotation, shift, bound, torch.cat(gradient, 1), information)

    def _look(
        self, images: Filtered, rotations: Tensor, weights: Tensor, mean: Tensor, width: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Log likelihoods at rotations [K, n, 3, 3], expected over a normal shift, [K, n].

        With the derivatives by the shift's mean in units of the width, [n, K, 2], and second
        derivatives, added up over the rotations in shares ``weights`` [K], [n, 2, 2].
        """
        model = self.model
        slices = model.volume.slices(mean_of(self.volume), rotations)
        power = power_of(self.volume, model.linear_volume.slicer, slices, rotations)
        unit = 2 * pi / (model.band.box * model.pixel_size)
        waves = torch.stack([model.band.kx, model.band.ky]).to(mean) * unit
        damp = torch.exp(-(width**2 @ waves**2) / 2)
        phase = shift_phase(model.band, mean, model.pixel_size)
        match = ((images.image * damp).conj() * phase) * slices
        values = match.real.sum(-1) - torch.linalg.vecdot(images.transfer, power) / 2
        slopes = (match.imag @ waves.T).movedim(0, 1) * width[:, None]
        expected = torch.einsum("k,knm->nm", weights, match.real)
        bends = -torch.einsum("nm,am,bm->nab", expected, waves, waves)
        return values, slopes, bends * width[:, None] * width[..., None]

    def _moved(self, stand: Stand, rate: Tensor) -> tuple[Tensor, Tensor]:
        """Numbers of the laws after a step of rates [n]; a trust region bounds it."""
        turns, moves = self.rotation(stand.rotation.double()), self.shift(stand.shift.double())
        rate, gradient = rate.double()[:, None], stand.gradient.double()[..., None]
        one = torch.eye(5).to(gradient)
        precision = one + rate[..., None] * (stand.information.double() - one)
        scale, axes = torch.linalg.eigh(precision)
        scale = scale.clamp(1 / _STEEPEST, _STEEPEST)[:, None]
        step = rate * ((axes / scale) @ (axes.mT @ gradient))[..., 0]
        step = step * (_LONGEST / step.norm(dim=1, keepdim=True).clamp(min=_LONGEST))
        precision = (axes * scale) @ axes.mT
        lower, width = turns.scale_tril, moves.stddev
        turn = (lower / SCALE_AT_ORIGIN @ step[:, :3, None])[..., 0]
        root = torch.linalg.cholesky(precision[:, :3, :3])
        spread = torch.linalg.solve_triangular(root, lower.mT, upper=False)
        kept = width**2 / precision.diagonal(dim1=1, dim2=2)[:, 3:]
        found = (
            self.rotation.around(_CHART(turn) @ turns.mode, spread.mT @ spread),
            self.shift.around(moves.mean + width * step[:, 3:], torch.diag_embed(kept)),
        )
        return found[0].to(stand.rotation), found[1].to(stand.shift)


def _icosahedron(like: Tensor) -> tuple[Tensor, Tensor]:
    """Points [13, 3] and weights [13] of a standard normal law's expectations, to degree 5."""
    golden = (1 + 5**0.5) / 2
    pair = torch.tensor([[1, -1], [golden, -golden]], dtype=torch.float64)
    corner = torch.nn.functional.pad(torch.cartesian_prod(*pair), (1, 0)).to(like)
    corners = torch.cat([corner.roll(shift, 1) for shift in range(3)])
    corners = corners * (5 / (1 + golden**2)) ** 0.5
    weights = torch.full_like(like[0, 0], 1 / 20).repeat(13)
    weights[0] = 2 / 5
    return torch.cat([torch.zeros_like(corners[:1]), corners]), weights
