"""Posteriors of single images, taken up from the files of a fit."""

from math import cos, radians

import torch

from cryoprob.app.posteriors import Fitted, moved_directions
from cryoprob.geometry.rotations import random_rotations
from cryoprob.metrics.motion import Motion
from cryoprob.particles import ParticleStack


def test_the_true_direction_is_likely(simulated, fitted):
    stack = ParticleStack.read(simulated / "truth.star")
    model = Fitted.load(fitted, stack, order=2)
    index = torch.arange(12)
    views = model.directions(index)
    assert torch.allclose(views.mass.sum(1), torch.ones(12), atol=1e-5)
    assert views.directions.shape == (192, 3)
    cosine = (views.directions @ stack.rotation[index, 2].mT).mT
    near = torch.where(cosine > cos(radians(30)), views.mass.double(), 0).sum(1)
    assert float(near.mean()) > 0.4  # 0.56 was found for these blobs; 0.07 if all were alike


def test_predictions_are_the_images_without_noise(simulated, fitted):
    stack = ParticleStack.read(simulated / "truth.star")
    model, index = Fitted.load(fitted, stack, order=0), torch.arange(20)
    rotation, shift = stack.rotation[index].float(), stack.shift[index].float()
    images, clean = stack.images(index), model.predict(index, rotation, shift)
    left = (images - clean).var(dim=(1, 2)).mean()
    # noise has variance 1, images have 3; the map was fitted to 80 of them
    assert 0.7 < float(left) < 1.2
    wrong = model.predict(index, rotation.roll(1, 0), shift)
    assert float((images - wrong).var(dim=(1, 2)).mean()) > 1.3 * float(left)


def test_directions_follow_a_moved_map():
    generator = torch.Generator().manual_seed(0)
    rotation = random_rotations(5, generator, dtype=torch.float64)
    turn = random_rotations(1, generator, dtype=torch.float64)[0]
    for mirrored in (False, True):
        motion = Motion(turn, torch.zeros(3).double(), mirrored)
        moved, _ = motion.move_poses(rotation, torch.zeros(5, 2).double())
        assert torch.allclose(moved_directions(rotation[:, 2], motion), moved[:, 2])
