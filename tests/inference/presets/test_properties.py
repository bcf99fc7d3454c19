"""Each preset's checkable property: where it is tested, and tests of presets that are EM of maps.

The parts are tested one by one; ``test_properties*.py`` tests them as a preset puts them together.

relion-refine3d
    with all else held exact EM climbs; the diagonal M-step does not:
    test_properties.py::test_relion_refine3d_climbs_by_the_exact_m_step_and_not_by_its_own
    test_m_step.py::test_exact_em_never_lowers_the_log_posterior
    test_m_step.py::test_the_diagonal_update_is_not_the_maximizer
relion-class3d
    labels change places; shares add up to 1, weights are their mean; one climbs:
    test_properties.py::test_relion_class3d_shares_images_out_and_does_not_know_its_labels
    one class is none, bit for bit; two states are told apart:
    test_classes.py::test_one_class_is_none
    test_classes.py::test_two_states_are_told_apart
cryosparc-abinitio
    minibatches of a partition add up; small steps of all images climb; Fisher's identity:
    test_properties.py::test_cryosparc_abinitio_minibatches_add_up_to_all_images
    test_properties.py::test_cryosparc_abinitio_climbs_in_small_steps_of_all_images
    test_identities.py::test_gradients_are_fishers_identity
cryosparc-refine
    branch and bound finds the best pose of the whole grid, looking at little of it; the bound:
    test_properties.py::test_cryosparc_refine_finds_the_best_pose_of_the_whole_grid
    test_branch_and_bound.py::test_most_of_the_grid_is_never_looked_at
    test_bounds.py::test_punjanis_bound_at_every_pose
cryodrgn
    of a linear volume the ELBO's optimum is PPCA's; the divergence in closed form:
    test_properties_modes.py::test_cryodrgn_of_linear_modes_ends_at_ppca
    test_properties_modes.py::test_the_elbo_touches_the_evidence_at_ppcas_posteriors
    test_properties_modes.py::test_cryodrgn_counts_the_divergence_in_its_closed_form
    the released loss is an ELBO; a slice is that of the map:
    test_cryodrgn.py::test_beta_is_a_noise_level
    test_contract.py::test_slice_at_any_view_is_the_transform_of_the_density
cryodrgn-bnb
    poses of noiseless images are the whole grid's; a part of the band bounds; none is given up:
    test_properties_networks.py::test_cryodrgn_bnb_finds_the_poses_of_noiseless_images
    test_bounds.py::test_a_part_of_the_band_never_has_more_energy
    test_branch_and_bound.py::test_the_sure_bound_finds_the_arg_max_always
cryodrgn2
    how often the beam keeps the truth, against the exact posterior's mass:
    test_properties_networks.py::test_cryodrgn2s_beam_keeps_the_truth_as_often_as_its_mass_says
    test_pruned.py::test_the_loss_is_the_mass_not_looked_at
cryofold
    slices are analytic; bonds do not see rigid motion:
    test_properties_gaussians.py::test_cryofolds_bonds_do_not_see_rigid_motion_and_slices_are_analytic
    test_gaussian_mixture.py::test_projection_is_the_transform_of_slices_and_the_sum_of_density
    test_structure_terms.py::test_blind_to_rigid_motion_and_to_nothing_else
3dva
    the span of the modes; their scale runs away unless they are orthonormal:
    test_properties_modes.py::test_3dva_finds_the_span_and_holds_the_scale
    test_linear_modes_em.py::test_hard_em_runs_away_in_scale
ppca
    the span of the modes, their values; the likelihood never falls:
    test_properties_modes.py::test_ppca_recovers_modes_and_their_values
    test_properties_modes.py::test_ppca_never_lowers_the_log_posterior
    test_linear_modes_em.py::test_modes_and_their_values_are_recovered
cryoposenet
    six numbers are onto the rotations, smoothly; slopes are those of differences:
    test_properties_networks.py::test_cryoposenets_rotations_are_proper_and_their_slopes_those_of_differences
    test_rotations.py::test_six_numbers_are_onto_the_rotations
    test_rotations.py::test_six_numbers_have_finite_gradients
    the encoder's median error below 10 degrees at the true map (views within 60 degrees of its
    start: from all views it ends in mirrored ones within what a test can wait for):
    test_properties_networks.py::test_cryoposenets_encoder_learns_the_poses_of_a_map_that_is_held
e2gmm
    slopes cancel at the consensus; scales of rings do not count; z = 0 is the neutral model:
    test_properties_gaussians.py::test_e2gmms_encoder_reads_slopes_that_cancel_at_the_consensus
    test_ring_correlation.py::test_an_image_with_itself_and_scaled_rings
    test_gaussians.py::test_the_neutral_model_first
atomvae
    the bound rises with the draws; factors are 0 at the reference; poses alone move nothing:
    test_properties_gaussians.py::test_atomvaes_bound_rises_with_the_number_of_draws
    test_properties_gaussians.py::test_atomvaes_factors_are_nothing_at_the_reference
    test_gaussians.py::test_poses_alone_first
cryoai
    the symmetric loss is the better one of an image and its half turn, whichever is given:
    test_properties_networks.py::test_the_symmetric_loss_is_the_better_of_an_image_and_its_half_turn
    test_objectives.py::test_the_symmetric_loss
cryofire
    images held out; z held in the first phase; z apart from the pose (which it is not: xfail):
    test_properties_networks.py::test_cryofires_encoder_knows_images_it_was_not_trained_on
    test_cryofire.py::test_z_is_frozen_while_poses_are_learned_first
    test_properties_networks.py::test_cryofires_z_is_apart_from_the_pose
fstdiff
    at known poses the ridge solution and widths that are too small; the bound is a mean of draws:
    test_properties.py::test_fstdiff_ends_at_the_ridge_solution_too_narrow_and_its_bound_is_a_mean
    test_gaussian_volume_bound.py::test_the_width_is_exact_where_modes_do_not_mix
covariance
    the span and values of ppca's modes; errors fall as 1 / sqrt(n); of whole maps the sample's:
    test_properties_modes.py::test_covariance_has_the_span_and_the_values_of_ppca
    test_covariance.py::test_the_error_falls_with_the_root_of_the_number_of_images
    test_covariance.py::test_whole_maps_seen_give_the_sample_covariance_less_the_noise
"""

import re
from pathlib import Path

import pytest
import torch
from dense_maps import columns, diagonal, wave
from problems import make_problem, some_map
from scenes import plan_of, refinement

from cryoprob.fourier.shells import shell_index_3d
from cryoprob.inference import ab_initio
from cryoprob.inference.ab_initio import AbInitio, AbInitioState
from cryoprob.inference.build import image_power
from cryoprob.inference.class_e_step import class_e_step
from cryoprob.inference.e_step import e_step
from cryoprob.inference.guide import Guide
from cryoprob.inference.presets.menu import PRESETS
from cryoprob.inference.treatments.known import Known
from cryoprob.inference.treatments.modal import Modal
from cryoprob.inference.treatments.point import Point

F64 = torch.float64
STILL = {"noise": False, "tau2": False, "shift_sigma": False, "turn": False}
"""Grids, noise and priors as they are."""

COARSE = {"coarse_order": 0, "max_order": 0, "shift_extent": 1.2, "shift_step": 1.2}
"""A grid of 72 rotations and 5 shifts."""


def rows():
    """Of the table above: each preset's named tests, (file, test)."""
    found = []
    for line in __doc__.splitlines()[4:]:
        if line and not line.startswith(" "):
            found.append((line, []))
        elif "::" in line:
            found[-1][1].append(tuple(line.strip().split("::")))
    return found


def test_the_table_has_every_preset_once():
    assert sorted(name for name, _ in rows()) == sorted(PRESETS)
    for name, tests in rows():
        assert any(file.startswith("test_properties") for file, _ in tests), name


@pytest.mark.parametrize(("name", "tests"), rows())
def test_what_the_table_names_is_there(name, tests):
    root = Path(__file__).parents[2]
    for file, test in tests:
        texts = [path.read_text() for path in root.rglob(file)]
        assert any(re.search(rf"^def {test}\(", text, re.M) for text in texts), test


def images(**options):
    """A few images of good signal, and maps other than theirs."""
    problem = make_problem(**{"n": 16, "signal": 6.0, "groups": 1, "contrast": False} | options)
    maps = [some_map(8, torch.Generator().manual_seed(seed)) for seed in (4, 5)]
    return problem, torch.stack(maps)


def course(stack, algorithm, state, steps):
    """Log posteriors of the maps before each step."""
    half, heights = state.halves[0], []
    for _ in range(steps):
        prior = half.model.log_prior_volume(half.guide.volume.coefficients.detach())
        algorithm.step(state, stack)
        heights.append(len(stack) * state.history[-1]["bound"] + float(prior))
    return torch.tensor(heights, dtype=F64)


def test_relion_refine3d_climbs_by_the_exact_m_step_and_not_by_its_own():
    problem, maps = images()
    gains = {}
    for m_step in ({}, {"m_step": "exact"}):
        settings = STILL | COARSE | m_step
        start = 0.3 * maps[0]
        algorithm, state = refinement(
            problem.stack, "relion-refine3d", start, radius=3, **settings
        )
        gains[algorithm.schedule.m_step] = course(problem.stack, algorithm, state, 8).diff()
    # conjugate gradients stop at 1e-3 of the residual, which is 1e-6 of a step's gain
    assert float(gains["exact"].min()) > -1e-5 * float(gains["exact"].max())
    assert float(gains["exact"].sum()) > 10
    # the diagonal does not see that interpolated slices couple neighbors
    assert float(gains["diagonal"].min()) < -1


def swapped(stack, maps, steps=3):
    """Ends of relion-class3d from two maps, as given and in the other order."""
    ends = []  # algorithm, state, log posteriors
    for order in ([0, 1], [1, 0]):
        settings = STILL | COARSE | {"classes": 2, "m_step": "exact"}
        found = refinement(stack, "relion-class3d", maps[order], radius=3, **settings)
        heights = course(stack, *found, steps)
        ends.append((*found, heights))
    return ends


def test_relion_class3d_shares_images_out_and_does_not_know_its_labels():
    problem, maps = images()
    (algorithm, state, heights), (_, flipped, others) = swapped(problem.stack, 0.3 * maps)
    one, other = state.halves[0], flipped.halves[0]
    # conjugate gradients that stop at 1e-3 may stop a step earlier or later
    ends = (half.guide.volume.coefficients.detach() for half in (one, other))
    torch.testing.assert_close(next(ends), next(ends).flip(0), rtol=0, atol=1e-6)
    torch.testing.assert_close(
        one.model.conformation.weights, other.model.conformation.weights.flip(0)
    )
    torch.testing.assert_close(heights, others)
    found = class_e_step(one.model, one.guide, problem.stack)
    ones = torch.ones(len(problem.stack), dtype=F64)
    torch.testing.assert_close(found.shares.sum(1), ones)
    assert float(found.shares.mean(0).min()) > 0.01  # else there is nothing to see
    old = one.model.conformation.weights.clone()
    algorithm.step(state, problem.stack)  # after an E-step of the same model
    torch.testing.assert_close(one.model.conformation.weights, found.shares.mean(0))
    assert float((old - found.shares.mean(0)).abs().max()) > 1e-3
    gains = heights.diff()
    # as of one map: 1e-3 of the residual
    assert float(gains.min()) > -1e-5 * float(gains.max()) and float(gains.sum()) > 1


def begun(stack, **settings):
    """A start from nothing after its first stochastic step: model, guide and grids in its state."""
    own = {"start_images": 4, "start_radius": 3, "starts": 1, "shift_extent": 2.0}
    plan = plan_of("cryosparc-abinitio", **own | settings)
    algorithm, state = AbInitio(plan, 3, image_power(stack), dtype=F64), AbInitioState()
    algorithm.step(state, stack)
    return algorithm, state


def test_cryosparc_abinitio_minibatches_add_up_to_all_images():
    """The gradient ``b - A V`` of a minibatch is an unbiased estimate of the whole one."""
    problem, _ = images(n=12, box=10)
    half = begun(problem.stack)[1].running
    volume = half.guide.volume.coefficients.detach()
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))

    def slope(index):
        found = e_step(half.model, half.guide, problem.stack, index)
        equations = found.insertion.equations()
        return equations.right_side() - equations.apply(volume), found.residual

    parts, whole = [slope(index) for index in order.split(4)], slope(order)
    for one, other in zip(map(sum, zip(*parts, strict=True)), whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)  # sums in other orders
    assert float((parts[0][0] - parts[1][0]).norm()) > 0.1 * float(whole[0].norm())


def test_cryosparc_abinitio_climbs_in_small_steps_of_all_images(monkeypatch):
    """Its own step, with all held that is not a step of the map: grid, noise, mask."""
    problem, _ = images(n=12, box=10)
    algorithm, state = begun(problem.stack, start_images=12)
    monkeypatch.setattr(AbInitio, "_grids", lambda *a: None)
    monkeypatch.setattr(AbInitio, "_constrain", lambda self, volume, model: volume)
    monkeypatch.setattr(ab_initio, "update_noise", lambda *a, **k: None)
    half, heights = state.running, []
    for _ in range(5):
        prior = half.model.log_prior_volume(half.guide.volume.coefficients.detach())
        record = algorithm.step(state, problem.stack)
        heights.append(12 * record["bound"] + float(prior))
    # part of the way to the top of a parabola below the log posterior is up
    assert bool((torch.tensor(heights, dtype=F64).diff() > 0).all())


def test_cryosparc_refine_finds_the_best_pose_of_the_whole_grid():
    problem, _ = images(n=10)
    settings = STILL | {"coarse_order": 0, "max_order": 1, "shift_extent": 1.2, "shift_step": 1.2}
    algorithm, state = refinement(
        problem.stack, "cryosparc-refine", problem.volume, radius=3, **settings
    )
    state.order, half = 1, state.halves[0]
    algorithm.step(state, problem.stack)
    found = half.guide.rotation.bound, half.guide.rotation.values, half.guide.shift.values
    assert found[0] is not None and len(half.model.rotation.cells()) == 576
    whole = Guide(rotation=Modal(), shift=Modal(), volume=Point(problem.volume))
    e_step(half.model, whole, problem.stack)
    # points of one grid
    torch.testing.assert_close(found[1], whole.rotation.values)
    torch.testing.assert_close(found[2], whole.shift.values)
    narrow = Guide(rotation=Modal(1, coarse_order=0), shift=Modal(1), volume=whole.volume)
    e_step(half.model, narrow, problem.stack)  # what a bound is for: one cell kept loses some
    assert not narrow.rotation.values.allclose(whole.rotation.values)


def test_fstdiff_ends_at_the_ridge_solution_too_narrow_and_its_bound_is_a_mean():
    problem = make_problem(box=6, n=12, signal=6.0, groups=1, contrast=False)
    start = torch.zeros(6, 6, 6, dtype=F64)
    algorithm, state = refinement(problem.stack, "fstdiff", start, poses="known", **STILL)
    half = state.halves[0]
    for _ in range(4):  # each goes on from the last one's map
        algorithm.step(state, problem.stack)
    model, q = half.model, half.guide.volume
    found = e_step(model, half.guide, problem.stack)
    equations, modes = found.insertion.equations(), wave(6)
    prior = 1 / model.linear_volume.tau2[shell_index_3d(6)].flatten()
    normal = columns(equations.apply, 6).reshape(216, 216)
    precision = normal + (modes.conj().T @ (prior[:, None] * modes)).real
    ridge = torch.linalg.solve(precision, equations.right_side().flatten()).view(6, 6, 6)
    away = float((q.coefficients.detach() - ridge).norm() / ridge.norm())
    assert away < 1e-3  # conjugate gradients' tolerance
    variance, marginal = q.variance.detach(), diagonal(precision.inverse())
    torch.testing.assert_close(variance, 1 / diagonal(precision))
    assert float((variance / marginal).min()) < 0.9  # modes mix
    drawn = []
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for one in q.law().sample((200,)):
            guide = Guide(rotation=half.guide.rotation, shift=half.guide.shift, volume=Point(one))
            drawn.append(e_step(model, guide, problem.stack).summary.bound)
    mean, error = torch.stack(drawn).mean(0), torch.stack(drawn).std(0) / 200**0.5
    assert isinstance(guide.rotation, Known)
    assert float(((mean - found.summary.bound) / error).abs().max()) < 4  # standard errors
    assert float((found.summary.bound - drawn[0]).abs().mean()) > float(error.mean())
