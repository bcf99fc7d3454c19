"""Linear equations by preconditioned conjugate gradients, for unknowns of any shape."""

from collections.abc import Callable

from torch import Tensor, finfo

__all__ = ["conjugate_gradients"]


def conjugate_gradients(
    apply: Callable[[Tensor], Tensor],
    right: Tensor,
    start: Tensor,
    precondition: Callable[[Tensor], Tensor],
    tolerance: float,
    max_iterations: int,
) -> tuple[Tensor, int]:
    """Solve ``apply(x) = right`` from ``start``; every step lowers ``x A x / 2 - x right``.

    Parameters
    ----------
    apply
        A symmetric positive operator A.
    right, start
        Of one shape.
    precondition
        An approximate inverse of A, symmetric and positive.
    tolerance
        Stop when the preconditioned residual fell to this part of the right-hand side's, or (for
        one of zero) to where its square leaves the numbers of the type.
    max_iterations
        Stop at the latest after so many steps.

    Returns
    -------
    Tensor, int
        The solution, and the steps taken.
    """
    found = start.clone()
    residual = right - apply(found)
    goal = tolerance * tolerance * (right * precondition(right)).sum()
    kind = finfo(right.dtype)
    goal = goal.clamp(min=kind.tiny / kind.eps)
    search = filtered = precondition(residual)
    height = (residual * filtered).sum()
    steps = 0
    while steps < max_iterations and height > goal:
        curved = apply(search)
        step = height / (search * curved).sum()
        found += step * search
        residual -= step * curved
        filtered = precondition(residual)
        new_height = (residual * filtered).sum()
        search = filtered + (new_height / height) * search
        height, steps = new_height, steps + 1
    return found, steps
