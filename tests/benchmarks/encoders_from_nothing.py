"""Autoencoders from nothing: map and encoder by gradients alone, with and without the symmetric loss.

    python tests/benchmarks/encoders_from_nothing.py [--seeds 1,2,3,4,5] [--families a,b] [--snr 0,1]
                                                     [--losses plain,symmetric,...] [--steps N]
                                                     [--first-radius R] [--threads N]

Bead walks of 32 x 32 pixels, images without CTF and shift, noiseless (SNR 0 on the command line)
or of SNR 1. Nothing but the images is given; a perceptron on Fourier numbers reads rotations off
them, a Dirac (``amortized-modal``) or a concentrated law (``amortized-vi``). Losses: ``plain``,
``symmetric`` and ``smooth`` (the better of an image's two answers, or their log mean), and
``sleep``: the map by the plain loss, q by images that the model draws (wake-sleep), with an encoder
that turns with the image and a mixture over the cells of a grid. Prints one row per
fit: seconds, the last objective in nats per image, the last shell at which the map's FSC with the
truth stays above 0.5 (hand aside; half of Nyquist is 8), the correlation of the map with its best
mirror image (1: it has a plane of symmetry), that of the truth, and the median rotation error in
degrees, without the map and for the better hand, of q's answer, or of the better one of q's two
answers under a symmetric loss.
"""

import argparse
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

from judged import answers, mirror_image

from cryoprob.fourier.bands import full_band
from cryoprob.geometry.rotations import random_rotations
from cryoprob.inference.build import build_model, image_power
from cryoprob.inference.encoders.fourier_mlp import FourierMLP
from cryoprob.inference.encoders.polar import Polar
from cryoprob.inference.guide import Guide
from cryoprob.inference.half import Half
from cryoprob.inference.joint import Joint, JointState
from cryoprob.inference.laws.cells import Cells
from cryoprob.inference.laws.rotations import ConcentratedLaw, DiracRotation
from cryoprob.inference.loop import Quiet, run_loop
from cryoprob.inference.objectives.base import Objective
from cryoprob.inference.objectives.elbo import Elbo
from cryoprob.inference.objectives.profile_log_joint import ProfileLogJoint
from cryoprob.inference.objectives.sleep import Sleep
from cryoprob.inference.objectives.symmetric import Symmetric
from cryoprob.inference.schedule import Schedule
from cryoprob.inference.treatments.amortized import Amortized
from cryoprob.inference.treatments.known import Known
from cryoprob.inference.treatments.point import Point
from cryoprob.metrics.alignment import align_maps
from cryoprob.metrics.fsc import fsc, last_shell
from cryoprob.metrics.pose_error import align_poses, pose_error
from cryoprob.models.volumes.fourier_voxels import FourierVoxels
from cryoprob.particles import ParticleStack
from cryoprob.phantoms import bead_walk

BOX, PIXEL_SIZE, IMAGES = 32, 4.0, 2000
LAWS = {"amortized-modal": lambda: DiracRotation(), "amortized-vi": lambda: ConcentratedLaw(20.0)}


def data(seed: int, snr: float) -> tuple[Tensor, Tensor, ParticleStack]:
    """A phantom, the images' rotations, and the images, of variance 1 without noise."""
    generator = torch.Generator().manual_seed(100 + seed)
    truth = bead_walk(30, BOX, PIXEL_SIZE, generator)
    rotation = random_rotations(IMAGES, generator, torch.float32)
    slices = FourierVoxels(BOX).slices(truth, rotation)
    images = full_band(BOX).prefix(BOX // 2 - 1).unpack(slices)
    scale = images.std()
    images, truth = images / scale, truth / scale
    if snr:
        images = images + torch.randn(images.shape, generator=generator) / snr**0.5
    return truth, rotation, ParticleStack.from_arrays(images, PIXEL_SIZE, None, None, None, None)


def objective(family: str, loss: str) -> Objective:
    """Of a family, with a loss."""
    if loss in ("plain", "sleep"):
        return ProfileLogJoint() if family == "amortized-modal" else Elbo()
    return Symmetric(smooth=loss == "smooth")


def begin(family: str, loss: str, stack: ParticleStack, seed: int) -> Half:
    """Model and guide at an empty map."""
    power = image_power(stack)
    model = build_model(stack, Schedule(), power, radius=2)
    torch.manual_seed(seed)
    sigma2 = model.noise.sigma2.mean(0)
    start = random_rotations(1, torch.Generator().manual_seed(seed), torch.float32)
    if loss == "sleep":
        law = Cells(1, heads=4, modal=family == "amortized-modal")
        turns = Amortized(Polar(18, sigma2, channels=64), law, start)
    else:
        turns = Amortized(FourierMLP(24, sigma2, width=512), LAWS[family](), start)
        turns.head.weight.data.mul_(10.0)  # views spread over the sphere from the first step
    nowhere = Known(torch.zeros(len(stack), 2))
    guide = Guide(rotation=turns, shift=nowhere, volume=Point(torch.zeros(BOX, BOX, BOX)))
    return Half(model, guide, torch.arange(len(stack)))


def errors(own: Tensor, other: Tensor, rotation: Tensor, loss: str, hand: bool) -> Tensor:
    """Degrees, of q's answer or of the better one of two, for one hand of the map."""
    half_turn = torch.diag(torch.tensor([-1.0, -1.0, 1.0]))
    own, other = (half_turn @ part if hand else part for part in (own, other))
    motion = align_poses(own, rotation, hands=False)
    told = [pose_error(p, None, rotation, None, motion).rotation_deg for p in (own, other)]
    return told[0] if loss in ("plain", "sleep") else torch.minimum(*told)


def row(family: str, snr: float, loss: str, seed: int, given: argparse.Namespace) -> str:
    """One fit, judged."""
    truth, rotation, stack = data(seed, snr)
    half = begin(family, loss, stack, seed)
    joint = Joint(
        objective(family, loss),
        seed,
        steps=given.steps,
        first_radius=given.first_radius,
        teacher=Sleep() if loss == "sleep" else None,
    )
    state, began = JointState(half), time.time()
    run_loop(joint, state, stack, stage="", steps=given.steps, observer=Quiet(), save=lambda: None)
    seconds, volume = time.time() - began, half.guide.volume.coefficients.detach()
    found = align_maps(volume, truth, pixel_size=PIXEL_SIZE)
    curve = fsc(found.move_map(volume, PIXEL_SIZE), truth)
    own, other = answers(half, stack)
    error = min(
        (errors(own, other, rotation, loss, hand) for hand in (False, True)), key=torch.median
    )
    if given.out:
        given.out.mkdir(exist_ok=True)
        torch.save(
            {"map": volume, "truth": truth}, given.out / f"{family}-{snr:g}-{loss}-{seed}.pt"
        )
    return (
        f"{family:16} {snr:4g} {loss:10} {seed:4} {seconds:7.0f} {state.history[-1]['bound']:10.2f}"
        f" {last_shell(curve, 0.5):5} {mirror_image(volume, PIXEL_SIZE):8.2f}"
        f" {mirror_image(truth, PIXEL_SIZE):6.2f} {float(error.median()):8.1f}"
    )


def main() -> None:
    """Run the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="1,2,3,4,5")
    parser.add_argument("--families", default=",".join(LAWS))
    parser.add_argument("--snr", default="0,1")
    parser.add_argument("--losses", default="plain,symmetric,sleep")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--first-radius", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(
        "family            snr loss       seed seconds       nats shell  mirror  truth   degrees"
    )
    for family in given.families.split(","):
        for snr in map(float, given.snr.split(",")):
            for loss in given.losses.split(","):
                for seed in map(int, given.seeds.split(",")):
                    print(row(family, snr, loss, seed, given), flush=True)


if __name__ == "__main__":
    main()
