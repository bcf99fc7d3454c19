"""The CTF: RELION's and cisTEM's numbers, identities, gradients; and which optics are refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cryoprob.checks import DataWarning, InputError
from cryoprob.fourier.bands import full_band
from cryoprob.optics import Optics, check_optics, ctf, wavelength

USUAL = {
    "defocus_u": 15000.0,
    "defocus_v": 13000.0,
    "defocus_angle": 25.0,
    "voltage": 300.0,
    "spherical_aberration": 2.7,
    "amplitude_contrast": 0.1,
}
NAMES = {
    "defocus_u_A": "defocus_u",
    "defocus_v_A": "defocus_v",
    "defocus_angle_deg": "defocus_angle",
    "voltage_kV": "voltage",
    "cs_mm": "spherical_aberration",
    "amplitude_contrast": "amplitude_contrast",
    "phase_shift_deg": "phase_shift",
    "bfactor_A2": "b_factor",
    "scale": "scale",
}


def some_optics(n, dtype=torch.float64, **changes):
    spread = torch.arange(n, dtype=dtype)
    return Optics(**{**USUAL, "defocus_u": 15000 + 500 * spread, **changes})


def plain_ctf(o, kx, ky, pixel_size, box):
    """The formula of the literature, angle by angle and sine by sine."""
    lam = wavelength(o.voltage)[:, None]
    kx, ky = kx.double(), ky.double()
    s2 = (kx**2 + ky**2) / (box * pixel_size) ** 2
    azimuth = torch.atan2(ky, kx)
    u, v = o.defocus_u[:, None], o.defocus_v[:, None]
    twice = 2 * (azimuth - torch.deg2rad(o.defocus_angle)[:, None])
    d = (u + v) / 2 + (u - v) / 2 * twice.cos()
    cs = 1e7 * o.spherical_aberration[:, None]
    chi = torch.pi * lam * d * s2 - torch.pi / 2 * cs * lam**3 * s2**2
    chi = chi + torch.deg2rad(o.phase_shift)[:, None]
    w = o.amplitude_contrast[:, None]
    wave = (1 - w**2).sqrt() * chi.sin() + w * chi.cos()
    return o.scale[:, None] * torch.exp(-o.b_factor[:, None] * s2 / 4) * wave


def test_ctf_equals_the_formula_written_out():
    band = full_band(32)
    o = some_optics(3, phase_shift=40.0, b_factor=80.0, scale=0.7)
    got = ctf(o, band.kx, band.ky, 1.3, 32)
    # phases up to 200 rad, so 1e-16 * 200 and a few roundings
    torch.testing.assert_close(got, plain_ctf(o, band.kx, band.ky, 1.3, 32), rtol=0, atol=1e-12)


def test_ctf_in_float32_is_right_to_its_own_rounding():
    """Whole turns are dropped before the phase is rounded: 40000 A at 1 A is 400 turns."""
    band = full_band(64)
    o = some_optics(3, defocus_u=torch.tensor([40000.0, 41000.0, 42000.0], dtype=torch.float64))
    exact = plain_ctf(o, band.kx, band.ky, 0.5, 64)
    got = ctf(o, band.kx, band.ky, 0.5, 64, dtype=torch.float32)
    assert got.dtype == torch.float32
    # half a turn (pi) rounded to 24 bits, and the sine's own rounding: some 1e-7 each
    torch.testing.assert_close(got.double(), exact, rtol=0, atol=6e-7)


def test_ctf_of_relion_tests(data):
    z = np.load(data / "vectors" / "relion_ctf.npz")
    ky, kx = np.meshgrid(z["frequency_y_1_per_A"], z["frequency_x_1_per_A"], indexing="ij")
    o = Optics(*(torch.tensor([float(z[n])]).double() for n in list(NAMES)[:6]))
    got = ctf(o, torch.tensor(kx.ravel()), torch.tensor(ky.ravel()), 1.0, 1)
    # agreement that the data's README found with this formula, on values stored as float32
    np.testing.assert_allclose(got[0].numpy(), z["ctf"].ravel(), rtol=0, atol=3.1e-8)


@pytest.mark.parametrize("case", range(11))
def test_ctf_of_relion_in_odd_cases(data, case):
    z = np.load(data / "vectors" / "relion_ctf_cases.npz")
    given = dict(zip(z["names"].tolist(), z["parameters"][case].tolist(), strict=True))
    k = torch.arange(-32, 32)
    ky, kx = (g.flatten() for g in torch.meshgrid(k, k, indexing="ij"))
    o = Optics(**{ours: torch.tensor([given[name]]).double() for name, ours in NAMES.items()})
    got = ctf(o, kx, ky, given["pixel_size_A"], 64)[0].numpy()
    want = z["ctf"][case].ravel()
    seen = np.isfinite(want)
    assert seen.sum() > 3000
    np.testing.assert_allclose(got[seen], want[seen], rtol=0, atol=1e-5)  # the README's


@pytest.mark.parametrize("case", range(9))
def test_ctf_of_cistem_has_the_other_sign_and_azimuth(data, case):
    z = np.load(data / "vectors" / "cistem_ctf.npz")
    *values, pixel_size = z["parameters"][case].tolist()
    values[2] = 90 - values[2]  # its azimuth is atan2(kx, ky)
    ky, kx = np.meshgrid(np.fft.fftfreq(128), np.fft.rfftfreq(128), indexing="ij")
    o = Optics(*(torch.tensor([v]).double() for v in values))
    got = ctf(o, torch.tensor(kx.ravel()), torch.tensor(ky.ravel()), pixel_size, 1)[0].numpy()
    # the README's .001 to .021: cisTEM rounds its frequencies and its wavelength
    np.testing.assert_allclose(-got, z["ctf"][case].ravel(), rtol=0, atol=0.022)


def test_ctf_is_the_amplitude_contrast_at_zero_frequency_and_even():
    o, band = some_optics(2), full_band(16)
    got = ctf(o, band.kx, band.ky, 2.0, 16)
    torch.testing.assert_close(got[:, 0], torch.full((2,), 0.1).double())
    torch.testing.assert_close(got, ctf(o, -band.kx, -band.ky, 2.0, 16))


def test_astigmatism_turns_from_x_to_y():
    """At angle 0 defocus u acts along x and v along y; at 90 degrees it is the other way round."""
    k, zero = torch.arange(1, 9), torch.zeros(8).long()
    at = {
        (angle, axis): ctf(some_optics(1, defocus_angle=angle), *axes, 2.0, 16)
        for angle in (0.0, 90.0)
        for axis, axes in {"x": (k, zero), "y": (zero, k)}.items()
    }
    round_u = ctf(some_optics(1, defocus_v=15000.0), k, zero, 2.0, 16)
    for pair in ((0.0, "x"), (90.0, "y")):
        torch.testing.assert_close(at[pair], round_u)
    for pair in ((0.0, "y"), (90.0, "x")):
        assert not torch.allclose(at[pair], round_u, atol=0.1)


def test_ctf_is_the_same_particle_by_particle_and_with_leading_dimensions():
    o, band = some_optics(5, b_factor=torch.tensor([0.0, 0, 10, 0, 0])), full_band(8)
    together = ctf(o, band.kx, band.ky, 1.5, 8)
    alone = [ctf(o[torch.tensor([i])], band.kx, band.ky, 1.5, 8) for i in range(5)]
    torch.testing.assert_close(together, torch.cat(alone))
    wide = replace(o, defocus_u=torch.stack([o.defocus_u, o.defocus_u + 100]))
    torch.testing.assert_close(ctf(wide, band.kx, band.ky, 1.5, 8)[0], together)


@pytest.mark.parametrize("name", [*USUAL, "phase_shift", "b_factor", "scale"])
def test_gradient_of_ctf(name):
    kx, ky, scale = torch.tensor([0, 1, -2, 3]), torch.tensor([0, 2, 1, -3]), 1e3
    factor = scale if name.startswith("defocus_") and name != "defocus_angle" else 1.0
    o = some_optics(2, phase_shift=20.0)

    def of(value):
        return ctf(replace(o, **{name: value * factor}), kx, ky, 1.5, 8)

    start = (getattr(o, name) / factor).clone().requires_grad_()
    assert torch.autograd.gradcheck(of, start)


def test_left_out_values_and_types():
    o = Optics(**USUAL)
    assert (o.phase_shift, o.b_factor, o.scale) == (0, 0, 1)
    assert o.defocus_u.dtype == torch.float64
    single = some_optics(3, torch.float32)
    assert len(single) == 3
    assert single.scale.dtype == single.voltage.dtype == torch.float32
    assert single.voltage.shape == (3,)
    assert single.to(dtype=torch.float64).b_factor.dtype == torch.float64


def test_indexing():
    o = some_optics(4)
    assert o[1:3].defocus_u.tolist() == [15500, 16000]
    assert o[torch.tensor([True, False, False, True])].defocus_u.tolist() == [15000, 16500]
    assert len(o[[2]]) == 1


def test_wavelength():
    """Relativistic wavelengths as tabled (Williams & Carter, table 1.2), pm to two digits."""
    for kilovolts, picometers in ((100, 3.70), (200, 2.51), (300, 1.97)):
        assert float(wavelength(kilovolts)) * 100 == pytest.approx(picometers, abs=0.005)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("voltage", 300000.0, "kilovolts"),
        ("voltage", 0.0, "kilovolts"),
        ("amplitude_contrast", 10.0, "fraction"),
        ("spherical_aberration", 2.7e7, "millimeters"),
        ("defocus_u", float("nan"), "Angstrom"),
        ("defocus_v", float("inf"), "Angstrom"),
        ("b_factor", float("nan"), "B factor"),
    ],
)
def test_impossible_optics_are_refused(name, value, words):
    good = some_optics(4)
    bad = getattr(good, name).clone()
    bad[2] = value
    with pytest.raises(
        InputError, match=rf"(?s)a\.star, particle 3, {name.replace('_', ' ')}.*{words}"
    ):
        check_optics(replace(good, **{name: bad}), "a.star")


def test_odd_optics_are_warned_of():
    check_optics(some_optics(4), "a.star")  # silence: warnings are errors
    with pytest.warns(DataWarning, match="micrometers"):
        check_optics(some_optics(1, defocus_u=1.5, defocus_v=1.4), "a.star")
    with pytest.warns(DataWarning, match="1 particles are overfocused"):
        check_optics(some_optics(1, defocus_u=-8000.0, defocus_v=-8000.0), "a.star")
