"""Fits of presets as the command line makes them, and what the papers measure of them."""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from scenes import trimmed
from torch import Tensor

from cryoprob.app.fit import configure
from cryoprob.fourier.bands import full_band
from cryoprob.inference.half import Half
from cryoprob.inference.joint_finish import answer
from cryoprob.inference.objectives.profile_log_joint import ProfileLogJoint
from cryoprob.inference.objectives.symmetric import Symmetric, turned, turned_back
from cryoprob.inference.result import FitResult
from cryoprob.inference.run import run_fit
from cryoprob.metrics.alignment import align_maps
from cryoprob.metrics.fsc import last_shell
from cryoprob.metrics.motion import Motion
from cryoprob.particles import ParticleStack


class Told:
    """Prints every tenth step."""

    def stage(self, name: str, steps: int) -> None:
        """The stage's name."""
        print(f"   {name}: {steps} steps", flush=True)

    def step(self, record: dict) -> None:
        """One line in ten."""
        if record["iteration"] % 10 == 0:
            nats, finest = record.get("bound", float("nan")), record.get("radius", "")
            print(f"   {record['iteration']:4} {nats:12.2f} shells {finest}", flush=True)

    def note(self, text: str) -> None:
        """A line."""
        print(f"   {text}", flush=True)


def arguments(description: str, **defaults: object) -> argparse.ArgumentParser:
    """Options of experiments from a reference: it, and the :func:`basic_arguments`."""
    parser = basic_arguments(description)
    parser.add_argument("--reference", help="a map to start from")
    parser.add_argument("--low-pass", type=float, default=40.0, help="of the reference, A")
    parser.set_defaults(**defaults)
    return parser


def basic_arguments(description: str) -> argparse.ArgumentParser:
    """Options that every experiment has: settings, seed, threads, a folder."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--set", action="append", default=[], help="name=value")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="keeps the fits")
    return parser


def fitted(
    name: str, star: Path, given: argparse.Namespace, out: Path, **more: object
) -> tuple[FitResult, float]:
    """A preset's fit with the options of the command line, and its minutes.

    Settings of the form ``preset:name=value`` go to that preset alone, others to all that use
    them. ``one map`` is no preset but exact EM of one map at known poses.
    """
    options = {"particles": star, "seed": given.seed, "threads": given.threads}
    options |= {"poses": "known"} if name == "one map" else {"preset": name}
    if given.reference:
        options |= {"reference": given.reference, "low_pass_A": given.low_pass}
    own = [text.split(":") for text in given.set]
    alike = name != "one map"
    settings = [text[-1] for text in own if text[0] == name or (alike and len(text) == 1)]
    config = configure({**options, **more}, settings, None, out, False)
    config = trimmed(config) if config.preset else config
    began = time.time()
    return run_fit(config, out, observer=Told()), (time.time() - began) / 60


def pixels(curve: Tensor, threshold: float) -> float:
    """Resolution in pixels: one over the last frequency before the FSC falls below a threshold."""
    return 2 * (len(curve) - 1) / max(1, last_shell(curve, threshold))


def mirror_image(volume: Tensor, pixel_size: float) -> float:
    """Correlation of a map with its best-aligned mirror image."""
    inverted = volume.flip(0, 1, 2).roll((1, 1, 1), (0, 1, 2))
    found = align_maps(inverted, volume, pixel_size=pixel_size, hands=False)
    both = torch.stack([found.move_map(inverted, pixel_size), volume]).flatten(1)
    return float(torch.corrcoef(both)[0, 1])


@torch.no_grad()
def answers(half: Half, stack: ParticleStack) -> tuple[Tensor, Tensor]:
    """The rotation that q reads off each image, and that off the image turned by 180 degrees."""
    batch = stack.batch(torch.arange(len(stack)), full_band(stack.box))
    half.guide.forget()
    own = half.guide.rotation.mode(batch)
    half.guide.forget()
    other = half.guide.rotation.mode(turned(batch))
    return own, turned_back(other, own.new_zeros(len(own), 2))[0]


@dataclass
class Read:
    """What q says of every image of a stack: poses, coordinates, nats."""

    rotation: Tensor
    shift: Tensor
    mean: Tensor
    nats: Tensor


@torch.no_grad()
def read_off(half: Half, stack: ParticleStack, *, both: bool) -> Read:
    """q of a stack that need not be that of the fit; the better of two answers where ``both``."""
    objective = Symmetric() if both else ProfileLogJoint()
    volume, found = half.guide.volume.coefficients.detach(), []
    for index in torch.arange(len(stack)).split(128):
        batch = stack.batch(index, full_band(stack.box))
        turns, moves, seen = answer(half, objective, batch)
        mean = half.guide.conformation.mode(seen)
        half.guide.forget()
        nats = objective(half.model, half.guide, volume, batch).double()
        found.append((turns, moves, mean, nats))
    half.guide.forget()
    return Read(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def view_error(rotation: Tensor, shift: Tensor, truth: Tensor, motion: Motion) -> Tensor:
    """Degrees between view directions after a motion of the map, [n]."""
    moved, _ = motion.move_poses(rotation.double(), shift.double())
    cosine = (moved[:, 2] * truth[:, 2].double()).sum(-1).clamp(-1, 1)
    return torch.rad2deg(torch.arccos(cosine))
