"""The ``latent`` command: what a fit says of the conformations, in tables, maps and a picture."""

from dataclasses import dataclass, replace
from importlib import import_module
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cryoprob.app.latent_plot import axis_names, plot_latent
from cryoprob.app.stats import read_stats
from cryoprob.app.words import facts, say, table
from cryoprob.checks import InputError, counted, require
from cryoprob.inference.config import FitConfig
from cryoprob.inference.conformation_budget import check_priced, conformation_budget
from cryoprob.inference.half import Half
from cryoprob.inference.latent import centers, collapse, line, nearest, region_shares, told
from cryoprob.inference.presets.base import Built
from cryoprob.inference.reload import reload
from cryoprob.inference.treatments.known import Known
from cryoprob.io.export import write_particles
from cryoprob.io.files import replacing
from cryoprob.io.mrc_writer import write_map
from cryoprob.metrics.principal_axes import principal_axes
from cryoprob.metrics.principal_curve import principal_curve
from cryoprob.models.conformations.gaussian import GaussianConformation
from cryoprob.particles import ParticleStack
from cryoprob.types import Maps

__all__ = ["Latent", "show_latent"]

_NODES, _CENTERS = 7, 10


@dataclass(frozen=True, eq=False)
class Latent:
    """Where the particles of a fit lie.

    Attributes
    ----------
    mean, std
        Coordinates of the images and their uncertainty, [N, size] each.
    """

    mean: Tensor
    std: Tensor

    @classmethod
    def read(cls, out: Path) -> "Latent":
        """From the posterior.nc of a fit.

        Raises
        ------
        InputError
            If there is none, or its model has no coordinates.
        """
        file = out / "posterior.nc"
        wanted = "a finished fit of a model with coordinates (cryodrgn, ppca, cryofire, ...)"
        require(file.exists(), str(out), expected=wanted, got="no posterior.nc")
        stats = read_stats(file)
        if "conformation" not in stats:
            raise InputError(str(file), expected=wanted, got="a fit without coordinates")
        pair = (stats[name].values for name in ("conformation", "conformation_std"))
        return cls(*(torch.from_numpy(values).double() for values in pair))


def show_latent(
    out: Path,
    count: int | None,
    steps: int,
    axis: int,
    at: list[str],
    umap: bool,
    seed: int,
    price: int = 0,
    order: int | None = None,
    least: float = 0.01,
) -> None:
    """Principal axes, centers of clusters, a path, chosen points; who lies where; what it costs.

    Raises
    ------
    InputError
        If the folder has no fit with coordinates, or a point has other numbers.
    """
    found = Latent.read(out)
    particles, size = found.mean.shape
    count = min(_CENTERS, particles) if count is None else count
    fits, got = count <= particles, str(count)
    require(fits, "--centers", expected=f"at most {particles}, the particles", got=got)
    require(1 <= axis <= size, "--axis", expected=f"1 to {size}", got=str(axis))
    chosen = torch.stack([_point(text, size) for text in at]) if at else found.mean[:0]
    built, stack = reload(out)
    half = built.half
    if price:
        check_priced(half, _NODES, built.objective)
    axes, (points, _) = principal_axes(found.mean), centers(found.mean, count, seed)
    path, folder = line(found.mean, steps, axis - 1), out / "latent"
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*_[0-9]*.*"):  # of other numbers of centers and steps
        old.unlink()
    volume = half.guide.volume.coefficients.detach()

    def density(point: Tensor) -> Maps:
        with torch.no_grad():
            return half.model.volume.density(volume, point.to(volume)).cpu()

    for name, places in (("center", points), ("path", path), ("at", chosen)):
        for number, place in enumerate(places, 1):
            write_map(folder / f"{name}_{number:02d}.mrc", density(place), stack.pixel_size)
    shares = region_shares(found.mean, found.std, points, seed)
    if stack.table is not None:
        for number, share in enumerate(shares.unbind(1), 1):
            rows = (share >= least).nonzero()[:, 0]
            part, extra = stack.table[rows.numpy()], {"cryoprobRegionShare": share[rows]}
            write_particles(folder / f"center_{number:02d}.star", part, extra=extra)
    pictured = _umap(found.mean, seed) if umap else axes.project(found.mean)
    _write(folder / "latent.csv", found, axes.project(found.mean), pictured if umap else None)
    near = nearest(found.mean, points), nearest(found.mean, path)
    names = ["UMAP 1", "UMAP 2"] if umap else axis_names(axes.share)
    doubt = collapse(found.mean, found.std)
    marks = pictured[near[0]], pictured[near[1]]
    plot_latent(folder / "latent.png", pictured, *marks, names, doubt)
    _tell(found, axes.share, shares, least, folder)
    if doubt:
        say(doubt)
    if price:
        _tell_price(out, built, stack, price, seed, order)


def _point(text: str, size: int) -> Tensor:
    """A point of the latent space from words."""
    between = " with commas between" if size > 1 else ""
    where, wanted = f"--at {text}", f"{counted(size, 'number')}{between}"
    try:
        values = [float(word) for word in text.split(",")]
    except ValueError:
        raise InputError(where, expected=wanted, got=repr(text)) from None
    require(len(values) == size, where, expected=wanted, got=counted(len(values), "number"))
    require(all(map(isfinite, values)), where, expected="finite numbers", got=text)
    return torch.tensor(values, dtype=torch.float64)


def _umap(values: Tensor, seed: int) -> Tensor:
    """Coordinates in the plane by UMAP, if it is installed."""
    try:
        umap = import_module("umap")
    except ImportError:
        got = "no module named umap"
        remedy = "Install it: pip install umap-learn"
        raise InputError("--umap", expected="umap-learn", got=got, remedy=remedy) from None
    found = umap.UMAP(random_state=seed).fit_transform(values.numpy())
    return torch.from_numpy(found).double()


def _write(path: Path, found: Latent, along: Tensor, picture: Tensor | None) -> None:
    """A line for every image."""
    parts: dict[str, Any] = {"z": found.mean, "std": found.std, "axis": along}
    parts |= {} if picture is None else {"umap": picture}
    head = [f"{name}{k + 1}" for name, values in parts.items() for k in range(values.shape[1])]
    place = principal_curve(found.mean).place[:, None]
    rows = torch.cat([*parts.values(), place], 1).tolist()
    lines = [",".join(["image", *head, "curve"])]
    lines += [f"{n}," + ",".join(f"{v:.6g}" for v in row) for n, row in enumerate(rows)]
    with replacing(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n")


def _prior_width(half: Half) -> Tensor:
    """Standard deviations of the coordinates' prior, [size]."""
    prior = half.model.conformation
    assert isinstance(prior, GaussianConformation)
    return prior.scale.double().cpu()


def _tell(found: Latent, share: Tensor, shares: Tensor, least: float, folder: Path) -> None:
    informed = ", ".join(f"{v:.0%}" for v in told(found.mean, found.std).tolist())
    if not found.std.any():
        informed = "not known: a q without width"
    facts(
        [
            ("Particles", str(len(found.mean))),
            ("Variance along the axes", ", ".join(f"{v:.0%}" for v in share.tolist())),
            ("Told of each coordinate", informed),
        ],
        "Coordinates",
    )
    counts = (shares >= least).sum(0).tolist()
    rows = [
        [f"center_{k:02d}", f"{mass:.1%}", str(count)]
        for k, (mass, count) in enumerate(zip(shares.mean(0).tolist(), counts, strict=True), 1)
    ]
    head = ["region", "occupancy", f"particles, share {least:g} or more"]
    table(head, rows, "Posterior mass of the regions")
    say(f"\nMaps, particles of each region, latent.csv and latent.png are in {folder}.")


def _tell_price(
    out: Path, built: Built, stack: ParticleStack, count: int, seed: int, order: int | None
) -> None:
    """Nats per image that one pose costs, and the law of z, for some images spread over all."""
    plan, half = FitConfig.from_toml(out / "config.toml").schedule, built.half
    order = plan.order(half.model.band.radius) if order is None else order
    plan = replace(plan, coarse_order=min(plan.coarse_order, order))
    index = torch.linspace(0, len(stack) - 1, min(count, len(stack))).long()
    options: dict[str, Any] = {"order": order, "nodes": _NODES, "seed": seed}
    options["objective"] = built.objective
    found = conformation_budget(half, stack, index, plan, **options)
    known = isinstance(half.guide.rotation, Known)
    error = float(found.error.square().sum().sqrt()) / len(index)
    worth = _worth(Latent.read(out), _prior_width(half))
    parts = [("Log evidence", found.evidence), ("ELBO", found.bound)]
    parts += [] if known else [("Price of one pose (its cell)", found.pose)]
    rows = [(name, f"{float(part.mean()):.2f}") for name, part in parts]
    rows.append(("Price of q of z", f"{float(found.conformation.mean()):.2f} +- {error:.2f}"))
    rows.append(("Told of z: KL(q || prior)", f"{worth:.2f}"))
    if not known:
        fewer = options | {"nodes": _NODES // 2 + 1}
        coarse = conformation_budget(half, stack, index, plan, **fewer)
        change = float((found.pose - coarse.pose).abs().mean())
        rows.append(("Error by the nodes of z", f"{change:.2f}"))
    how = "poses known" if known else f"rotations of order {order}, {_NODES} nodes of z an axis"
    facts(rows, f"Nats per image ({len(index)} images, {how})")


def _worth(found: Latent, width: Tensor) -> float:
    """Mean divergence of normal posteriors from the prior, nats; infinite for Diracs."""
    ratio = (found.std / width).square()
    divergence = ratio + (found.mean / width).square() - 1 - ratio.log()
    return float(divergence.sum(1).mean()) / 2
