"""The microscope: its parameters for every particle, and the contrast transfer function (CTF)."""

from dataclasses import dataclass, fields, replace
from math import pi

import torch
from torch import Tensor

from cryoprob.checks import InputError, warn

__all__ = ["Optics", "check_optics", "ctf", "wavelength"]

_MM = 1e7
"""Angstrom in a millimeter."""

_RANGES: dict[str, tuple[float, float, str, str]] = {
    "defocus_u": (-1e6, 1e6, "A", "Give defocus in Angstrom (15000 A = 1.5 um)."),
    "defocus_v": (-1e6, 1e6, "A", "Give defocus in Angstrom (15000 A = 1.5 um)."),
    "defocus_angle": (-720.0, 720.0, "degrees", "Give the angle of astigmatism in degrees."),
    "voltage": (10.0, 3000.0, "kV", "Give the voltage in kilovolts (300, not 300000)."),
    "spherical_aberration": (-100.0, 100.0, "mm", "Give Cs in millimeters (2.7, not 2.7e7)."),
    "amplitude_contrast": (0.0, 1.0, "(a fraction)", "Give a fraction (0.1, not 10 percent)."),
    "phase_shift": (-720.0, 720.0, "degrees", "Give the phase plate's shift in degrees."),
    "b_factor": (-1e4, 1e5, "A^2", "Leave the B factor out if it is not known."),
    "scale": (-1e6, 1e6, "(a factor)", "Leave the scale out if it is not known."),
}


@dataclass(frozen=True, eq=False)
class Optics:
    """What the CTF of each of N particles depends on; every field is a tensor of one shape [*, N].

    Numbers are accepted and broadcast; all fields take the floating type and device of
    ``defocus_u`` (float64 if it is a plain number).

    Attributes
    ----------
    defocus_u, defocus_v
        Defocus along the two axes of astigmatism, A; positive is underfocus.
    defocus_angle
        Angle of the ``u`` axis from +x towards +y, degrees.
    voltage
        Acceleration voltage, kV.
    spherical_aberration
        Cs, mm.
    amplitude_contrast
        Fraction w in [0, 1].
    phase_shift
        Phase plate, degrees (0 if left out).
    b_factor
        Envelope ``exp(-B s^2 / 4)``, A^2 (0 if left out).
    scale
        Factor on the whole CTF (1 if left out).
    """

    defocus_u: Tensor
    defocus_v: Tensor
    defocus_angle: Tensor
    voltage: Tensor
    spherical_aberration: Tensor
    amplitude_contrast: Tensor
    phase_shift: Tensor = torch.tensor(0.0)
    b_factor: Tensor = torch.tensor(0.0)
    scale: Tensor = torch.tensor(1.0)

    def __post_init__(self) -> None:
        first = _as_float(self.defocus_u)
        given = [torch.as_tensor(getattr(self, f.name)) for f in fields(self)]
        alike = (v.to(first.device, first.dtype) for v in given)
        values = torch.broadcast_tensors(*alike)  # type: ignore[no-untyped-call]
        for field, value in zip(fields(self), values, strict=True):
            object.__setattr__(self, field.name, value)

    def __len__(self) -> int:
        return self.defocus_u.shape[-1]

    def __getitem__(self, index: int | slice | Tensor) -> "Optics":
        return Optics(*(getattr(self, f.name)[..., index] for f in fields(self)))

    def to(
        self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> "Optics":
        """The same optics in another floating type or on another device."""
        values = (getattr(self, f.name) for f in fields(self))
        return Optics(*(v.to(device=device, dtype=dtype) for v in values))

    def defocused(self, error: Tensor) -> "Optics":
        """The same optics with ``error`` [*, N] (A) added to both defoci; shapes broadcast."""
        u, v = self.defocus_u + error, self.defocus_v + error
        return replace(self, defocus_u=u, defocus_v=v)


def wavelength(voltage: Tensor | float) -> Tensor:
    """Relativistic wavelength of electrons, A, at ``voltage`` kV (300 kV: 0.019687 A)."""
    volts = 1e3 * _as_float(voltage)
    return 12.2643247 / torch.sqrt(volts * (1 + 0.978466e-6 * volts))


def ctf(
    optics: Optics,
    kx: Tensor,
    ky: Tensor,
    pixel_size: float,
    box: int,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The CTF [*, N, M] at frequencies (kx, ky) [M], differentiable in the optics.

    ``scale exp(-B s^2/4) (sqrt(1-w^2) sin chi + w cos chi)`` with
    ``chi = pi lambda d s^2 - pi/2 Cs lambda^3 s^4 + phase``, where ``d`` is the defocus along the
    direction of the frequency: RELION's sign, positive at zero frequency (Rohou & Grigorieff 2015,
    eq. 2-5, with the opposite sign). Written as one sine, ``sin(chi + asin w)``, whose phase is a
    sum of five products (the astigmatic term is a quadratic form of the frequency); the phase is
    summed in float64 and whole turns are dropped, so that the result is right to the rounding of
    its own type.

    Parameters
    ----------
    optics
        The particles' optics, [*, N].
    kx, ky
        Frequencies, cycles per box, [M] (a :class:`~cryoprob.fourier.bands.Band` has them).
    pixel_size
        A per pixel of the ``box``.
    box
        Pixels along a side.
    dtype
        Type of the result; that of ``optics`` if left out.
    """
    device, dtype = optics.defocus_u.device, dtype or optics.defocus_u.dtype
    sx, sy = (k.to(device, torch.float64) / (box * pixel_size) for k in (kx, ky))
    square = sx**2 + sy**2
    basis = torch.stack([square, sx**2 - sy**2, 2 * sx * sy, square**2, torch.ones_like(sx)])
    turns = _phase(optics.to(dtype=torch.float64)) @ basis
    wave = torch.sin(2 * pi * (turns - turns.detach().round()).to(dtype))
    return wave * _envelope(optics, square).to(dtype)


def _phase(optics: Optics) -> Tensor:
    """Coefficients [*, N, 5] of chi + asin(w), in turns, on the basis that :func:`ctf` lists."""
    wave = wavelength(optics.voltage)
    mean, half = (
        (optics.defocus_u + optics.defocus_v) / 2,
        (optics.defocus_u - optics.defocus_v) / 2,
    )
    double = 2 * torch.deg2rad(optics.defocus_angle)
    fourth = -optics.spherical_aberration * _MM * wave**3 / 4
    constant = optics.phase_shift / 360 + torch.asin(optics.amplitude_contrast) / (2 * pi)
    plane = [wave * mean / 2, wave * half * double.cos() / 2, wave * half * double.sin() / 2]
    return torch.stack([*plane, fourth, constant], -1)


def _envelope(optics: Optics, square: Tensor) -> Tensor:
    """``scale exp(-B s^2 / 4)``, [*, N, M], or [*, N, 1] where no B factor acts."""
    scale, factor = optics.scale[..., None], optics.b_factor[..., None]
    if not (factor.requires_grad or factor.any()):
        return scale
    return scale * torch.exp(-factor * square.to(factor.dtype) / 4)


def _as_float(value: Tensor | float) -> Tensor:
    """A floating tensor; plain numbers and integers become float64."""
    exact = not isinstance(value, Tensor) or not value.is_floating_point()
    return torch.as_tensor(value, dtype=torch.float64) if exact else torch.as_tensor(value)


def check_optics(optics: Optics, where: str) -> None:
    """Refuse optics that no microscope has, naming the first particle; warn of odd ones.

    Raises
    ------
    InputError
        If a value is not finite or outside of what its unit allows.
    """
    for name, (low, high, unit, remedy) in _RANGES.items():
        value = getattr(optics, name).flatten()
        bad = ~((value >= low) & (value <= high))  # NaN compares false
        if bad.any():
            first = int(bad.nonzero()[0])
            raise InputError(
                f"{where}, particle {first + 1}, {name.replace('_', ' ')}",
                expected=f"a number from {low:g} to {high:g} {unit}",
                got=f"{float(value[first]):g} ({int(bad.sum())} of {value.numel()} are so)",
                remedy=remedy,
            )
    _warn_of_defocus((optics.defocus_u + optics.defocus_v) / 2, where)


def _warn_of_defocus(defocus: Tensor, where: str) -> None:
    if defocus.numel() and 0 < float(defocus.abs().max()) < 100:
        warn(f"{where}: no defocus reaches 100 A; is it given in micrometers?", stacklevel=4)
    if bool((defocus < 0).any()):
        warn(f"{where}: {int((defocus < 0).sum())} particles are overfocused.", stacklevel=4)
