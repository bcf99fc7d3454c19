"""One page of conventions: axes, signs, units and transform norms. Everything inside obeys it.

* Volumes are ``[D, D, D]`` as (z, y, x), images ``[D, D]`` as (y, x); D is even, the origin is
  voxel ``D // 2`` of every axis; lengths are Angstrom, angles are degrees at the user's edge,
  matrices inside.
* A rotation ``R`` takes the molecule to the laboratory (column vectors x, y, z). Projection sums
  over laboratory z, so the central slice at image frequency (kx, ky) is the volume's transform at
  ``R^T (kx, ky, 0)``. RELION's matrix of (rot, tilt, psi) is this R.
* ``shift`` is the displacement of the particle from the image center, Angstrom, (x, y); its phase
  is ``exp(-2 pi i k . shift)``. RELION's origins are its negative.
* Transforms are unitary in 2D and 3D with the origin at ``D // 2``. The image is the plain sum of
  voxels over z, hence a slice of the unitary 3D transform carries the factor ``sqrt(D)``.
* ``sigma2`` is the variance of a pixel, which is E|N_k|^2 of a unitary coefficient. A half-plane
  coefficient is held times sqrt(2) (a self-conjugate one times 1), so that its real and imaginary
  part are each N(mean, sigma2) and every pixel's information counts exactly once.
* The CTF is RELION's: ``sqrt(1 - w^2) sin(chi) + w cos(chi)``, positive at zero frequency.
  Particles are white on dark.
* Shell ``s`` of a frequency is ``floor(|k| + 1/2)`` with k in cycles per box.
"""

__all__ = ["CHILDREN_PER_ROTATION", "IN_PLANE_PER_ORDER0", "PIXELS_PER_ORDER0"]

PIXELS_PER_ORDER0 = 12
"""HEALPix pixels at order 0; order o has 12 * 4^o."""

IN_PLANE_PER_ORDER0 = 6
"""In-plane angles at order 0 (60 degrees apart); order o has 6 * 2^o."""

CHILDREN_PER_ROTATION = 8
"""A cell of the rotation grid splits into 4 directions x 2 in-plane angles."""
