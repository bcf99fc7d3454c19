"""A fit as ArviZ has it: named groups of arrays with named dimensions."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import roma
import torch
from torch import Tensor

from cryoprob.checks import require
from cryoprob.fourier.bands import full_band
from cryoprob.geometry.rotations import angle_between
from cryoprob.inference.chains import Chains
from cryoprob.inference.half import Half
from cryoprob.inference.imaging import Imaging
from cryoprob.inference.learn import seeded
from cryoprob.inference.pose_draws import draw_poses
from cryoprob.inference.states import States
from cryoprob.inference.statistics import PosteriorSummary
from cryoprob.optics import Optics
from cryoprob.particles import ParticleStack
from cryoprob.types import Images, Maps, Rotations

if TYPE_CHECKING:
    from xarray import Dataset

__all__ = ["Groups", "Predictive", "as_arviz", "fit_groups", "tree"]

_OPTICS = {
    "defocus_u": "A",
    "defocus_v": "A",
    "defocus_angle": "degrees",
    "voltage": "kV",
    "spherical_aberration": "mm",
    "amplitude_contrast": "",
    "phase_shift": "degrees",
}
_RINGS = 10
_POSE = ("chain", "draw", "image")

Groups = dict[str, "Dataset"]
"""Name -> dataset."""


def fit_groups(
    volume: Maps,
    pixel_size: float,
    summary: PosteriorSummary,
    history: list[dict[str, Any]],
    kind: str,
    states: States | None = None,
    imaging: Imaging | None = None,
) -> Groups:
    """What a fit knows without its images: ``posterior`` and ``sample_stats``.

    The posterior is the map's power, one draw. ``sample_stats`` has the bound of every iteration,
    and of every image the mean pose and the bound at the final map (``image_bound``, of the
    ``kind`` said). That is no ``log_likelihood``: a map that is a point has only one, of which
    ``arviz.loo`` would make a number that means nothing. It raises "log likelihood not found".
    """
    from xarray import Dataset

    steps = {
        name: (["iteration"], np.array([r[name] for r in history], float), {"units": unit})
        for name, unit in (("bound", "nats per image"), ("resolution_A", "A"))
    }
    stats = {
        "rotation": (["image", "row", "column"], _numpy(summary.rotation)),
        "shift": (["image", "axis"], _numpy(summary.shift), {"units": "A"}),
        "image_bound": (["image"], _numpy(summary.bound), {"units": "nats", "kind": kind}),
    }
    widths = summary.widths()
    if "entropy" in widths:
        stats["entropy"] = (["image"], _numpy(widths["entropy"]), {"units": "nats"})
    if "probability" in widths:
        stats["max_probability"] = (["image"], _numpy(widths["probability"]))
    if states is not None and states.shares.numel():
        stats["class_probability"] = (["image", "class"], _numpy(states.shares))
    if states is not None and states.mean.numel():
        stats["conformation"] = (["image", "coordinate"], _numpy(states.mean))
        stats["conformation_std"] = (["image", "coordinate"], _numpy(states.std))
    if imaging is not None:
        stats |= _seen(imaging)
    places = {"image": np.arange(len(summary.bound)), "axis": ["x", "y"]}
    return {
        "posterior": _power(volume[None, None], pixel_size),
        "sample_stats": Dataset(stats | steps, places),
    }


def _seen(imaging: Imaging) -> dict[str, Any]:
    """Posterior means and standard deviations of contrast and defocus error, where latent."""
    named = {
        "contrast": (imaging.contrast, {}),
        "contrast_std": (imaging.contrast_std, {}),
        "defocus_offset": (imaging.defocus, {"units": "A"}),
        "defocus_offset_std": (imaging.defocus_std, {"units": "A"}),
    }
    return {
        name: (["image"], _numpy(values), about)
        for name, (values, about) in named.items()
        if len(values)
    }


@dataclass(frozen=True, eq=False)
class Predictive:
    """Draws of poses and images anew, at draws of the map or at the one there is.

    Parameters
    ----------
    half
        Model and guide as fitted, and which images it was fitted to.
    stack
        The particles of the fit.
    index
        Images that are drawn anew, [n].
    volume_draws
        Draws of the map, or None for the fitted one.
    draws
        Of poses and images, where there are no draws of the map.
    seed
        Of all draws.
    """

    half: Half
    stack: ParticleStack
    index: Tensor
    volume_draws: Chains | None
    draws: int
    seed: int

    def groups(self) -> Groups:
        """All of them but ``sample_stats``; the posterior has some forty numbers, for plots."""
        from xarray import Dataset

        rotation, shift = self._poses()
        index, counts = self.index.numpy(), _counted(shift)
        maps = self._maps().expand(*shift.shape[:2], *[-1] * 3)
        moves = ([*_POSE, "axis"], _numpy(shift), {"units": "A"})
        angle = (list(_POSE), _numpy(_from_mean(rotation)), {"units": "degrees"})
        made = ([*_POSE, "y", "x"], self._images(maps, rotation, shift))
        seen = (["image", "y", "x"], self.stack.images(self.index).numpy())
        places = {"image": index, "axis": ["x", "y"]}
        posterior = _power(maps, self.stack.pixel_size)
        turns = ([*_POSE, "row", "column"], _numpy(rotation))
        groups = {
            "posterior": posterior.assign_coords(places).assign(angle=angle, shift=moves),
            "pose_draws": Dataset({"rotation": turns, "shift": moves}, places | counts),
            "posterior_predictive": Dataset({"images": made}, {"image": index} | counts),
            "observed_data": Dataset({"images": seen}, {"image": index}),
            "constant_data": _constants(self.stack),
        }
        return groups | self._log_likelihood()

    def _log_likelihood(self) -> Groups:
        from xarray import Dataset

        chains = self.volume_draws
        if chains is None or chains.log_likelihood is None:
            return {}
        values, total = chains.log_likelihood, len(self.stack)
        index = torch.arange(total) if values.shape[-1] == total else self.half.index
        got = f"those of {values.shape[-1]}"
        expected = f"log likelihoods of the {len(index)} images of the fit"
        require(values.shape[-1] == len(index), "volume draws", expected=expected, got=got)
        places = {"image": index.numpy()} | _counted(values)
        found = {"images": (list(_POSE), _numpy(values), {"units": "nats"})}
        return {"log_likelihood": Dataset(found, places)}

    def _maps(self) -> Maps:
        """Maps that poses are drawn at, [C, S, D, D, D], or [1, 1, ...] for the fitted one."""
        if self.volume_draws is not None:
            return self.volume_draws.volume
        return self.half.guide.volume.coefficients.detach()[None, None]

    def _poses(self) -> tuple[Tensor, Tensor]:
        """Rotations [C, S, n, 3, 3] and shifts [C, S, n, 2] of the subset."""
        chains = self.volume_draws
        if chains is not None and chains.rotation is not None and chains.shift is not None:
            return chains.rotation[:, :, self.index], chains.shift[:, :, self.index]
        maps = self._maps()
        count = 1 if chains is not None else self.draws
        model, guide = self.half.model, self.half.guide
        turns, moves = [], []
        for number, volume in enumerate(maps.flatten(0, 1)):
            seed = self.seed + 1 + number
            poses = draw_poses(model, guide, volume, self.stack, self.index, count, seed)
            turns.append(poses[0])
            moves.append(poses[1])
        shape = (1, self.draws) if chains is None else maps.shape[:2]
        return torch.cat(turns).unflatten(0, shape), torch.cat(moves).unflatten(0, shape)

    def _images(self, maps: Maps, rotation: Tensor, shift: Tensor) -> Any:
        """Real-space images [C, S, n, D, D] float32, noise and all."""
        model, band = self.half.model, full_band(self.stack.box)
        like = model.noise.sigma2
        batch = self.stack.batch(self.index, band, like.dtype, like.device)
        found: list[Images] = []
        with torch.no_grad(), seeded(self.seed):
            for chain in range(len(rotation)):
                for volume, turn, move in zip(
                    maps[chain], rotation[chain], shift[chain], strict=True
                ):
                    drawn = model.likelihood(volume, turn, move, batch).sample()
                    found.append(band.unpack(drawn).float().cpu())
        return torch.stack(found).unflatten(0, rotation.shape[:2]).numpy()


def tree(groups: Groups) -> Any:
    """The groups as an xarray DataTree."""
    from xarray import DataTree

    return DataTree.from_dict(dict(groups))


def as_arviz(groups: Groups) -> Any:
    """What ArviZ works on: InferenceData of 0.2x, a DataTree from 1.0 on."""
    import arviz

    if hasattr(arviz, "InferenceData"):
        return arviz.InferenceData(warn_on_custom_groups=False, **groups)
    return tree(groups)


def _power(volume: Maps, pixel_size: float) -> "Dataset":
    """Mean power of maps [C, S, D, D, D] in ten rings of shells or fewer: few, for plots."""
    from xarray import Dataset

    power, box = Chains(volume, volume[..., 0, 0, 0]).power(), volume.shape[-1]
    inside = torch.arange(1, box // 2)
    rings = inside.tensor_split(min(_RINGS, len(inside)))
    found = torch.stack([power[..., ring].mean(-1) for ring in rings], -1)
    reach = np.array([round(box * pixel_size / int(ring[-1]), 2) for ring in rings])
    ends = ("resolution", reach, {"units": "A", "long_name": "end of the ring"})
    places = {**_counted(found), "resolution": ends}
    return Dataset({"power": (["chain", "draw", "resolution"], _numpy(found))}, places)


def _from_mean(rotation: Rotations) -> Tensor:
    """Angle (degrees) of rotations [C, S, n, 3, 3] from the mean of each image's, [C, S, n]."""
    mean = roma.special_procrustes(rotation.double().mean((0, 1)))
    return angle_between(rotation.double(), mean.expand(rotation.shape))


def _constants(stack: ParticleStack) -> "Dataset":
    """Pixel size, CTF parameters, optics groups and names of all images."""
    from xarray import Dataset

    every = np.arange(len(stack))
    names = np.array(stack.group_names)[stack.group.numpy()]
    found: dict[str, Any] = {
        "pixel_size": ([], stack.pixel_size, {"units": "A"}),
        "optics_group": (["image"], names.astype(str)),
        "image_name": (["image"], np.array(stack.image_names(torch.arange(len(stack))))),
    }
    return Dataset(found | _lens(stack.optics), {"image": every})


def _lens(optics: Optics | None) -> dict[str, Any]:
    if optics is None:
        return {}
    return {
        name: (["image"], _numpy(getattr(optics, name)), {"units": unit})
        for name, unit in _OPTICS.items()
    }


def _counted(values: Tensor) -> dict[str, Any]:
    """Coordinates of the chains and draws of values [C, S, ...]."""
    return {"chain": np.arange(values.shape[0]), "draw": np.arange(values.shape[1])}


def _numpy(values: Tensor) -> Any:
    return values.detach().cpu().numpy()
