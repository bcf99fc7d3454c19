"""Least squares for the covariance of maps: identities, consistency, and beside linear modes."""

import pytest
import torch
from moving import moving, principal_angles

from cryoprob.checks import InputError
from cryoprob.fourier.shells import shell_index_3d
from cryoprob.fourier.transforms import fft3
from cryoprob.inference.covariance import (
    estimate_covariance,
    fourier_basis,
    least_squares_covariance,
    least_squares_mean,
)
from cryoprob.inference.linear_modes_em import ModesEM, principal

F64 = torch.float64


def draws(n, generator, d=5, p=3, sigma2=0.5):
    """Random operators, images of maps of two uniform (not normal) coordinates, the truth."""
    root = torch.randn(d, 2, generator=generator, dtype=F64)
    z = (torch.rand(n, 2, generator=generator, dtype=F64) - 0.5) * 12**0.5
    mean = torch.randn(d, generator=generator, dtype=F64)
    operators = torch.randn(n, p, d, generator=generator, dtype=F64)
    noise = sigma2**0.5 * torch.randn(n, p, generator=generator, dtype=F64)
    images = torch.einsum("npd,nd->np", operators, mean + z @ root.T) + noise
    return operators, images, mean, root @ root.T


def test_whole_maps_seen_give_the_sample_covariance_less_the_noise(generator):
    images = torch.randn(40, 4, generator=generator, dtype=F64)
    operators = torch.eye(4, dtype=F64).expand(40, 4, 4)
    mean = least_squares_mean(operators, images)
    torch.testing.assert_close(mean, images.mean(0))
    found, _ = least_squares_covariance(operators, images - mean, sigma2=0.3)
    wanted = images.T.cov(correction=0) - 0.3 * torch.eye(4, dtype=F64)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)  # the tolerance of the solver


@pytest.mark.parametrize("ridge", [0.0, 0.4])
def test_it_is_the_least_squares_solution(generator, ridge):
    operators, images, mean, _ = draws(30, generator)
    residuals = images - operators @ mean
    found, steps = least_squares_covariance(operators, residuals, ridge=ridge, tolerance=1e-10)
    gram = operators.mT @ operators
    matrix = sum(torch.kron(g, g) for g in gram) / 30 + ridge * torch.eye(25, dtype=F64)
    seen = (operators.mT @ residuals[..., None])[..., 0]
    right = (torch.einsum("na,nb->ab", seen, seen) - gram.sum(0)) / 30
    wanted = torch.linalg.solve(matrix, right.flatten()).reshape(5, 5)
    torch.testing.assert_close(found, wanted, atol=1e-7, rtol=0)
    assert steps <= 60


def test_the_error_falls_with_the_root_of_the_number_of_images():
    errors = []
    for n in (200, 3200):
        square = []
        for seed in range(12):
            parts = draws(n, torch.Generator().manual_seed(seed))
            operators, images, _, truth = parts
            mean = least_squares_mean(operators, images)
            found, _ = least_squares_covariance(operators, images - operators @ mean, sigma2=0.5)
            square.append((found - truth).square().sum())
        errors.append(float(torch.stack(square).mean().sqrt()))
    # 4 for 16 times the images; a mean square of 12 with heavy tails is known to some 30 %
    assert 2.7 < errors[0] / errors[1] < 6


def test_the_basis_is_orthonormal_and_of_the_band():
    basis = fourier_basis(8, 3)
    flat = basis.flatten(1)
    torch.testing.assert_close(flat @ flat.T, torch.eye(len(flat), dtype=F64))
    inside = shell_index_3d(8) <= 3
    assert len(basis) == int(inside.sum())
    assert float(fft3(basis).abs()[:, ~inside].max()) < 1e-12


def test_its_leading_modes_are_those_of_the_exact_posterior():
    options = {"box": 16, "n": 1500, "values": (8.0, 6.0), "mean": 8.0, "resolution": 8.0}
    problem = moving(**options, snr=0.6, radius=3, blur=3.0, dtype=torch.float32)
    guide = problem.guide()
    found = estimate_covariance(
        problem.model, guide, problem.stack, ridge=0.03, mean_ridge=0.1, tolerance=1e-2
    )
    state, algorithm = problem.state(), ModesEM(seed=1, max_iterations=10, noise=False)
    while not state.done:
        algorithm.step(state, problem.stack)
    exact = principal(state.half.guide.volume.coefficients.detach())
    modes = found.modes(2)
    # an unweighted fit of squares: its angle to the truth is three times that of the likelihood
    assert float(principal_angles(modes, exact.coefficients[1:]).max()) < 15
    assert float(principal_angles(modes, problem.truth[1:]).max()) < 15
    norms = modes.flatten(1).norm(dim=1).double()
    torch.testing.assert_close(norms, exact.singular_values, rtol=0.1, atol=0)
    away = found.mean_map() - problem.truth[0]
    assert float(away.norm()) < 0.15 * float(problem.truth[0].norm())


def test_large_boxes_and_stacks_are_refused():
    problem = moving(box=18, n=2)
    with pytest.raises(InputError, match="16 or less"):
        estimate_covariance(problem.model, problem.guide(), problem.stack)
    problem = moving(box=8, n=20)
    with pytest.raises(InputError, match="MiB or less"):
        estimate_covariance(problem.model, problem.guide(), problem.stack, memory=2**16)


def test_images_of_noise_alone_have_no_covariance():
    """At the model's own whitening: what the images' noise adds to second moments is taken off."""
    found, taken = [], []
    for seed in range(8):
        problem = moving(box=8, n=150, values=(1e-6,), mean=1e-6, radius=2, seed=seed)
        whose = problem.model, problem.guide(), problem.stack
        estimate = estimate_covariance(*whose, ridge=0.03, tolerance=1e-3)
        found.append(estimate.covariance.trace() / len(estimate.covariance))
        problem.model.noise.sigma2.mul_(1e-6)  # what would be left if none were taken off
        left = estimate_covariance(*whose, ridge=0.03, tolerance=1e-3)
        taken.append(left.covariance.trace() / len(left.covariance))
    found, taken = torch.stack(found), torch.stack(taken)
    error = found.std() / len(found) ** 0.5
    # the mean fitted beside it takes 33 of 150 * 25 numbers, a hundredth of the noise
    assert abs(float(found.mean())) < 6 * float(error) + 0.01 * float(taken.mean())
    assert float(taken.mean()) > 30 * float(error)  # or the test would not see it
