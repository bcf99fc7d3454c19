"""Normal laws of small problems' maps, and what they take off scores."""

import torch
from dense_maps import columns, some_variance, wave

from cryoprob.inference.filtered import filter_images
from cryoprob.inference.treatments.gaussian_volume import GaussianVolume


def gaussian(problem, size=0.1):
    """q around the problem's volume, unlike variances."""
    generator = torch.Generator().manual_seed(5)
    return GaussianVolume(problem.volume, size * some_variance(problem.stack.box, generator))


def posed(problem, volume):
    """The problem with continuous priors and known poses, at a volume's q."""
    known = problem.continuous()
    known.guide.volume = volume
    return known


def draw_maps(q, count, seed=3):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return q.law().sample((count,)).detach()


def lost_at(problem, q, rotations):
    """What q takes off each image's score at each rotation, [N, Q], by whole matrices."""
    slicer, box = problem.model.volume.slicer, problem.stack.box
    rows = columns(lambda v: slicer.slices(v, rotations), box)
    modes = torch.einsum("qmx,kx->qmk", rows, wave(box).conj())  # of unit modes
    power = modes.abs().square() @ q.variance.detach().flatten()
    images = filter_images(problem.model, problem.stack, torch.arange(len(problem.stack)))
    return images.transfer @ power.T / 2
