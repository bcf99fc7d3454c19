"""Fit a model and guide of one's own to a stack: the loop without files."""

from typing import Any

import torch

from cryoprob.inference.em import EM, EMState
from cryoprob.inference.finish import finish
from cryoprob.inference.guide import Guide
from cryoprob.inference.half import Half
from cryoprob.inference.learn import Learner
from cryoprob.inference.loop import Observer, Quiet, run_loop
from cryoprob.inference.result import FitResult
from cryoprob.inference.schedule import Schedule
from cryoprob.inference.solvent import Solvent
from cryoprob.models.particle_model import ParticleModel
from cryoprob.particles import ParticleStack

__all__ = ["fit"]


def fit(
    model: ParticleModel,
    guide: Guide,
    particles: ParticleStack,
    *,
    seed: int,
    schedule: Schedule | None = None,
    resolution_A: float | None = None,
    solvent: Solvent | None = None,
    symmetry: str = "C1",
    learner: Learner | None = None,
    resume: dict[str, Any] | None = None,
    observer: Observer | None = None,
) -> FitResult:
    """Refine the guide's volume by EM with the guide's q; model and guide are changed in place.

    Parameters
    ----------
    model, guide
        What to fit, from the volume that the guide's ``Point`` starts at.
    particles
        The images.
    seed
        Of the random turns of the grid.
    schedule
        Bands, grids and stopping.
    resolution_A
        Resolution of the start map; default 8 pixels.
    solvent
        Mask; default a sphere.
    symmetry
        Point group.
    learner
        Trains q before each E-step, where it is learned by steps (tables, encoders).
    resume
        What :meth:`EMState.pack` gave, to go on from there.
    observer
        Who watches.

    Raises
    ------
    InputError
        If the guide and the model do not fit together, or the evidence stops being finite.

    Notes
    -----
    :func:`cryoprob.inference.run.run_fit` adds files, checkpoints and starts from nothing.
    """
    plan = schedule or Schedule()
    algorithm = EM(plan, seed, solvent or Solvent(), symmetry, learner)
    state = EMState([Half(model, guide, torch.arange(len(particles)))])
    width = particles.box * particles.pixel_size
    state.shell = max(2, round(width / (resolution_A or 8 * particles.pixel_size)))
    if resume is not None:
        state.unpack(resume)
    run_loop(
        algorithm,
        state,
        particles,
        stage="refine",
        steps=plan.max_iterations,
        observer=observer or Quiet(),
        save=lambda: None,
    )
    return finish(algorithm, state, particles, [], [], seed)
