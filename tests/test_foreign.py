"""Against other programs: projections of RELION and cisTEM, and RELION's reconstruction of our images."""

import shutil
import subprocess

import numpy as np
import pytest
import torch

from cryoprob.fourier.bands import full_band
from cryoprob.fourier.slices import Slicer
from cryoprob.geometry.rotations import euler_to_matrix
from cryoprob.io.mrc import open_stack, read_map
from cryoprob.metrics.fsc import fsc
from cryoprob.models.image_likelihood import shift_phase
from cryoprob.models.simulate import simulate
from cryoprob.particles import ParticleStack
from cryoprob.phantoms import blobs

LEAST = 0.999


def images_of(volume, rotation, shift, ctf, pixel_size):
    """Noiseless images [n, D, D] by the package's own parts, float64."""
    box = volume.shape[-1]
    band = full_band(box).prefix(box // 2 - 1)
    slicer = Slicer(band, dtype=torch.float64)
    phase = shift_phase(band, shift, pixel_size)
    return band.unpack(slicer.slices(volume.double(), rotation) * phase * ctf)


def agreement(ours, theirs):
    """Correlation and slope of their images on ours, each [n]."""
    ours, theirs = (v.flatten(1) - v.flatten(1).mean(1, keepdim=True) for v in (ours, theirs))
    product = (ours * theirs).sum(1)
    norms = (ours**2).sum(1), (theirs**2).sum(1)
    return product / (norms[0] * norms[1]).sqrt(), product / norms[0]


def test_images_with_ctf_are_those_of_relion(data):
    """Whole image formation: CTF, shift, slice, and the absolute scale (RELION slices linearly too)."""
    folder = data / "relion-70s"
    stack = ParticleStack.read(folder / "truth.star", need=("ctf", "rotation", "shift"))
    clean, _ = open_stack(folder / "clean_first8.mrcs")
    theirs = torch.from_numpy(np.array(clean, dtype=np.float64))
    index = torch.arange(len(theirs))
    band = full_band(stack.box).prefix(stack.box // 2 - 1)
    ctf = stack.batch(index, band, dtype=torch.float64).ctf
    volume, _ = read_map(folder / "truth.mrc")
    ours = images_of(volume, stack.rotation[index], stack.shift[index], ctf, stack.pixel_size)
    correlation, slope = agreement(ours, theirs)
    assert correlation.min() > LEAST
    assert (slope - 1).abs().max() < 0.02  # their linear interpolation loses up to 1 % at the rim


@pytest.mark.parametrize("name", ["rln_proj_64_centered", "rln_proj_64_shifted"])
def test_plain_projections_are_those_of_relion(data, name):
    folder = data / "vectors"
    volume, _ = read_map(folder / "rln_proj_64_volume.mrc")
    need = ("rotation", "shift")
    stack = ParticleStack.read(folder / f"{name}.star", need=need, pixel_size=1.0)
    theirs = stack.images(torch.arange(len(stack))).double()
    ours = images_of(volume, stack.rotation, stack.shift, 1.0, stack.pixel_size)
    correlation, slope = agreement(ours, theirs)
    assert correlation.min() > LEAST
    assert (slope - 1).abs().max() < 0.02


def test_projections_are_those_of_cistem(data):
    """Correlations of 0.997 to 0.9995 were found for the formula itself (README of the data)."""
    found = np.load(data / "vectors" / "cistem_projection.npz")
    names = {name: found[name] for name in found.files}
    volume = next(v for v in names.values() if v.ndim == 3 and len({*v.shape}) == 1)
    theirs = next(v for v in names.values() if v.ndim == 3 and v is not volume)
    angles = next(v for v in names.values() if v.ndim == 2 and v.shape[-1] == 3)
    rotation = euler_to_matrix(torch.from_numpy(angles).double())
    shift = torch.zeros(len(rotation), 2, dtype=torch.float64)
    ours = images_of(torch.from_numpy(volume), rotation, shift, 1.0, 1.0)
    correlation, _ = agreement(ours, torch.from_numpy(theirs).double())
    assert correlation.abs().min() > 0.996


@pytest.mark.relion
def test_relion_reconstructs_our_map_from_our_images(tmp_path):
    """Images and STAR file written here, true poses: RELION's map is ours, FSC > 0.99 to 0.8 Nyquist."""
    if shutil.which("relion_reconstruct") is None:
        pytest.skip("relion_reconstruct is not on the PATH (apt-get install relion)")
    box, pixel_size = 32, 4.0
    generator = torch.Generator().manual_seed(5)
    volume = blobs(box, pixel_size, generator)
    drawn = simulate(volume, pixel_size, 2000, 200.0, generator, out=tmp_path)
    command = ["relion_reconstruct", "--i", "truth.star", "--o", "map.mrc", "--ctf"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    theirs, _ = read_map(tmp_path / "map.mrc")
    ours, _ = read_map(drawn.truth_map)
    assert fsc(theirs, ours)[1 : int(0.8 * box / 2) + 1].min() > 0.99
