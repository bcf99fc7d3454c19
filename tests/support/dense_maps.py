"""Linear algebra of small maps by whole matrices: Fourier modes, operators, covariances."""

import math

import torch

from cryoprob.fourier.modes import opposite

F64 = torch.float64


def wave(box):
    """The centered unitary transform of all D^3 voxels, [D^3, D^3]."""
    k = torch.arange(box, dtype=F64) - box // 2
    grid = torch.stack(torch.meshgrid(k, k, k, indexing="ij")).flatten(1)
    return torch.exp(-2j * math.pi * (grid.T @ grid) / box) / box**1.5


def covariance(variance):
    """Of all voxels, for modes of the variances [D, D, D]."""
    modes = wave(len(variance))
    return (modes.conj().T @ (variance.flatten()[:, None] * modes)).real


def diagonal(matrix):
    """A map's real matrix [D^3, D^3] in the basis of the modes: its diagonal, [D, D, D]."""
    box = round(len(matrix) ** (1 / 3))
    modes = wave(box)
    return torch.einsum("kx,xy,ky->k", modes, matrix.to(modes), modes.conj()).real.view(
        box, box, box
    )


def columns(operator, box):
    """A linear function of maps as a matrix, [*, D^3], one unit voxel a column."""
    voxels = torch.eye(box**3, dtype=F64).reshape(-1, box, box, box)
    return torch.stack([operator(voxel) for voxel in voxels], -1)


def some_variance(box, generator, least=0.2):
    """Unlike variances of all modes, alike at k and -k, [D, D, D]."""
    drawn = least + torch.rand(box, box, box, generator=generator, dtype=F64)
    return (drawn + opposite(drawn)) / 2
