"""What a fit gives back, and the files it leaves."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cryoprob.inference.statistics import PosteriorSummary
from cryoprob.io.export import write_particles
from cryoprob.io.files import replacing
from cryoprob.io.mrc import read_map
from cryoprob.io.mrc_writer import write_map
from cryoprob.metrics.fsc import write_fsc_csv
from cryoprob.particles import ParticleStack
from cryoprob.types import Maps

__all__ = ["FitResult", "write_metrics"]


@dataclass(eq=False)
class FitResult:
    """A fitted map with the posterior of every image.

    Attributes
    ----------
    volume, volume_std
        Map and its posterior standard deviation (mean field, at the final poses' weights), [D, D,
        D].
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
    """

    volume: Maps
    volume_std: Maps
    pixel_size: float
    resolution_A: float
    criterion: str
    posterior: PosteriorSummary
    history: list[dict[str, Any]]
    trust: str
    halves: list[Maps] = field(default_factory=list)
    curve: Tensor = field(default_factory=lambda: torch.zeros(0))

    def save(self, out: Path, stack: ParticleStack) -> None:
        """Write every output into the folder ``out``, each file atomically."""
        write_map(out / "volume.mrc", self.volume, self.pixel_size)
        write_map(out / "volume_std.mrc", self.volume_std, self.pixel_size)
        for number, half in enumerate(self.halves, 1):
            write_map(out / f"half{number}.mrc", half, self.pixel_size)
        if len(self.curve):
            write_fsc_csv(out / "fsc.csv", {"fsc": self.curve}, self.pixel_size)
        if stack.table is not None:
            self._write_particles(out / "particles.star", stack)
        write_metrics(out / "metrics.jsonl", self.history)
        with replacing(out / "posterior.nc") as temporary:
            # through memory: HDF5 itself crashes on a full disk
            temporary.write_bytes(self._tree().to_netcdf(engine="h5netcdf"))

    def to_arviz(self) -> Any:
        """Groups posterior, sample_stats and log_likelihood, with named dims, for ArviZ."""
        import arviz

        tree = self._tree()
        if not hasattr(arviz, "InferenceData"):
            return tree
        groups = {name: node.to_dataset() for name, node in tree.children.items()}
        return arviz.InferenceData(**groups)

    def _write_particles(self, path: Path, stack: ParticleStack) -> None:
        posterior = self.posterior
        extra = {
            "rlnLogLikeliContribution": posterior.log_evidence,
            "rlnMaxValueProbDistribution": posterior.probability,
            "cryoprobPoseEntropy": posterior.entropy,
        }
        rotation, shift = posterior.rotation.double().cpu(), posterior.shift.double().cpu()
        write_particles(path, stack, rotation, shift, extra)

    def _tree(self) -> Any:
        from xarray import Dataset, DataTree

        names, summary = ["chain", "draw", "image"], self.posterior
        coords = {"chain": [0], "draw": [0]}
        steps = {
            name: (["chain", "iteration"], np.array([[r[name] for r in self.history]], float))
            for name in ("log_evidence", "resolution_A")
        }
        posterior = {
            "rotation": ([*names, "row", "column"], _one(summary.rotation)),
            "shift": ([*names, "axis"], _one(summary.shift)),
        }
        stats = {
            "entropy": (names, _one(summary.entropy)),
            "max_probability": (names, _one(summary.probability)),
        }
        likelihood = {"images": (names, _one(summary.log_evidence))}
        return DataTree.from_dict(
            {
                "posterior": Dataset(posterior, {**coords, "axis": ["x", "y"]}),
                "sample_stats": Dataset(stats | steps, coords),
                "log_likelihood": Dataset(likelihood, coords),
            }
        )

    @staticmethod
    def load_volume(out: Path) -> tuple[Maps, float]:
        """The map of a finished fit, and its pixel size."""
        return read_map(out / "volume.mrc")


def _one(values: Tensor) -> Any:
    """As one chain of one draw."""
    return values.detach().cpu().numpy()[None, None]


def write_metrics(path: Path, history: list[dict[str, Any]]) -> None:
    """One JSON object per step (no times: the same run gives the same bytes)."""
    with replacing(path) as temporary:
        temporary.write_text("".join(json.dumps(record) + "\n" for record in history))
