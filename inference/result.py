"""What a fit gives back, and the files it leaves."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cryoprob.checks import require
from cryoprob.inference.arviz_groups import Groups, Predictive, as_arviz, fit_groups, tree
from cryoprob.inference.chains import Chains
from cryoprob.inference.half import Half
from cryoprob.inference.imaging import COLUMNS, Imaging
from cryoprob.inference.states import States
from cryoprob.inference.statistics import PosteriorSummary
from cryoprob.inference.treatments.known import Known
from cryoprob.inference.volume_draws import draw_volumes
from cryoprob.io.export import write_particles
from cryoprob.io.files import replacing
from cryoprob.io.mrc import read_map
from cryoprob.io.mrc_writer import write_map
from cryoprob.metrics.fsc import write_fsc_csv
from cryoprob.particles import ParticleStack
from cryoprob.types import Maps

__all__ = ["FitResult", "write_metrics"]

_SHOWN = 8
"""Images that are drawn anew unless others are asked for."""

_WIDTHS = {"probability": "rlnMaxValueProbDistribution", "entropy": "cryoprobPoseEntropy"}
"""Columns of how sure the poses are; left out where that is not known, as of a Dirac."""


@dataclass(eq=False)
class FitResult:
    """A fitted map with the posterior of every image.

    Attributes
    ----------
    volume, volume_std
        Map and its posterior standard deviation (at the final poses' weights, from exact draws;
        a factorized q of the map is narrower), [D, D, D].
    pixel_size
        Angstrom per voxel.
    resolution_A
        Angstrom, by the criterion named in ``criterion``.
    criterion
        How the resolution was judged.
    posterior
        Of every image.
    history
        One record per step.
    trust
        In words, how far the result can be trusted.
    halves, curve
        Half maps and their FSC, with half sets.
    fitted
        Model and guide as they were left (of the first half, with half sets).
    states
        Conformations of the images and maps of them, where the model has any; ``volume`` is then
        the map of the heaviest class, or that of the mean coordinates.
    imaging
        Contrast and defocus of the images, where these were latent.
    """

    volume: Maps
    volume_std: Maps | None
    pixel_size: float
    resolution_A: float
    criterion: str
    posterior: PosteriorSummary
    history: list[dict[str, Any]]
    trust: str
    halves: list[Maps] = field(default_factory=list)
    curve: Tensor = field(default_factory=lambda: torch.zeros(0))
    fitted: Half | None = None
    states: States | None = None
    imaging: Imaging | None = None

    def save(self, out: Path, stack: ParticleStack) -> None:
        """Write every output into the folder ``out``, each file atomically."""
        write_map(out / "volume.mrc", self.volume, self.pixel_size)
        if self.volume_std is not None:
            write_map(out / "volume_std.mrc", self.volume_std, self.pixel_size)
        for name, volume in (self.states.maps if self.states else {}).items():
            write_map(out / f"{name}.mrc", volume, self.pixel_size)
        for number, half in enumerate(self.halves, 1):
            write_map(out / f"half{number}.mrc", half, self.pixel_size)
        if len(self.curve):
            write_fsc_csv(out / "fsc.csv", {"fsc": self.curve}, self.pixel_size)
        if stack.table is not None:
            self._write_particles(out / "particles.star", stack)
        write_metrics(out / "metrics.jsonl", self.history)
        with replacing(out / "posterior.nc") as temporary:
            # through memory: HDF5 itself crashes on a full disk
            groups = self._groups()
            temporary.write_bytes(tree(groups).to_netcdf(engine="h5netcdf"))

    def draw_volumes(
        self, particles: ParticleStack, *, seed: int, chains: int = 4, draws: int = 25, **how: Any
    ) -> Chains:
        """Draws of the map at the fitted weights of the poses, with their log likelihoods.

        See :func:`~cryoprob.inference.volume_draws.draw_volumes`, which also says what ``how`` may
        be, and how far to trust them.
        """
        half = self._half()
        return draw_volumes(half, particles, chains=chains, draws=draws, seed=seed, **how)

    def to_arviz(
        self,
        particles: ParticleStack | None = None,
        *,
        volume_draws: Chains | None = None,
        images: Sequence[int] | Tensor | None = None,
        draws: int = 50,
        seed: int | None = None,
    ) -> Any:
        """The fit for ArviZ: InferenceData of its versions 0.2x, a DataTree from 1.0 on.

        Alone it has the groups ``posterior`` (the map's power in some rings of shells, one draw)
        and ``sample_stats`` (the bound of every iteration; mean pose and bound of every image).
        With ``particles``: the posterior also has the poses of some images, as angles from their
        means and as shifts (whole rotations are in ``pose_draws``), and there are
        ``posterior_predictive`` (these images drawn anew), ``observed_data`` and
        ``constant_data``. With ``volume_draws`` also ``log_likelihood`` [chain, draw, image],
        poses summed out, for ``arviz.loo`` and ``arviz.compare``; a map that is a point has none,
        and these then say so (:mod:`cryoprob.inference.model_comparison`).

        Parameters
        ----------
        particles
            Those of the fit.
        volume_draws
            Draws of the map: of :meth:`draw_volumes`, or of
            :func:`~cryoprob.inference.gibbs.sample_gibbs`.
        images
            Which images are drawn anew; default the first 8 of the fit.
        draws
            Of poses and images, where there are no draws of the map.
        seed
            Of the draws.

        Raises
        ------
        InputError
            If there is something to draw from ``particles`` and no seed, or draws of the map and
            no particles; with ``particles`` of a fit whose contrast or defocus is latent, since
            poses are not drawn beside these (without, ``sample_stats`` has what was found).
        """
        groups = self._groups()
        if particles is None:
            got = "draws of the map alone"
            require(volume_draws is None, "to_arviz", expected="the particles too", got=got)
            return as_arviz(groups)
        require(seed is not None, "to_arviz", expected="a seed for the draws", got="none")
        half, wanted = self._half(), "contrast and defocus as given, to draw poses beside"
        remedy = "FitResult.imaging has what was found of them, and to_arviz() without particles."
        got = "latent ones, summed out"
        require(self.imaging is None, "result", expected=wanted, got=got, remedy=remedy)
        index = half.index[:_SHOWN] if images is None else torch.as_tensor(images)
        parts = Predictive(half, particles, index, volume_draws, draws, int(seed or 0))
        return as_arviz(groups | parts.groups())

    def _half(self) -> Half:
        got, remedy = "one without its model", "A map that was read from a file has none."
        found = self.fitted is not None
        require(found, "result", expected="one that a fit gave", got=got, remedy=remedy)
        assert self.fitted is not None
        return self.fitted

    def _groups(self) -> Groups:
        kind = "" if self.fitted is None else self.fitted.guide.kind
        seen = (self.volume, self.pixel_size, self.posterior, self.history, kind)
        return fit_groups(*seen, self.states, self.imaging)

    def _write_particles(self, path: Path, stack: ParticleStack) -> None:
        posterior = self.posterior
        widths = {_WIDTHS[name]: values for name, values in posterior.widths().items()}
        extra = {"rlnLogLikeliContribution": posterior.bound} | widths
        extra |= self.states.columns() if self.states else {}
        extra |= self.imaging.columns() if self.imaging else {}
        rotation, shift = posterior.rotation.double().cpu(), posterior.shift.double().cpu()
        guide = None if self.fitted is None else self.fitted.guide
        poses = (None,) if guide is None else (guide.rotation, guide.shift)
        given = all(isinstance(part, Known) for part in poses)
        stale = list(COLUMNS.values())  # those in the file are of another fit, or of other poses
        stale += [] if given else list(_WIDTHS.values())
        write_particles(path, stack, rotation, shift, extra, without=stale)

    @staticmethod
    def load_volume(out: Path) -> tuple[Maps, float]:
        """The map of a finished fit, and its pixel size."""
        return read_map(out / "volume.mrc")


def write_metrics(path: Path, history: list[dict[str, Any]]) -> None:
    """One JSON object per step (no times: the same run gives the same bytes)."""
    with replacing(path) as temporary:
        temporary.write_text("".join(json.dumps(record) + "\n" for record in history))
