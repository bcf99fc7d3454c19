"""How far estimated conformations are from the truth, whatever their names and coordinates.

Classes are known up to their names, and coordinates up to any smooth change of them: what is
compared is which images share a class, and in which order images lie along the motion.
"""

from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from scipy.stats import spearmanr
from torch import Tensor

from cryoprob.checks import require
from cryoprob.metrics.principal_curve import principal_curve

__all__ = ["ClassError", "PathError", "confusion", "path_error"]


@dataclass(frozen=True, eq=False)
class ClassError:
    """Classes of images against their true ones, under the best matching of the names.

    Attributes
    ----------
    wrong
        Share of the images that are in a class not matched with their own, 0 to 1.
    weight
        Largest difference of the weights of a class and its match, 0 to 1; a class without a
        match has one of weight 0.
    names
        The true classes, [K].
    matched
        For each true class the found one, or -1, [K].
    recall
        Share of each true class that is in its match, [K].
    counts
        Images by true class and found class, [K, F].
    """

    wrong: float
    weight: float
    names: Tensor
    matched: Tensor
    recall: Tensor
    counts: Tensor


def confusion(found: Tensor, truth: Tensor) -> ClassError:
    """Compare classes with the true ones; the numbers of classes may differ.

    The names are matched, one to one, so that most images are right
    (:func:`scipy.optimize.linear_sum_assignment`, the Hungarian method); images of classes that
    are left over are wrong.

    Parameters
    ----------
    found
        Labels [N], any whole numbers; or the posterior of F classes, [N, F]: an image is then in
        its most probable class (0 to F - 1), and weights are mean shares.
    truth
        True labels [N].

    Raises
    ------
    InputError
        If there are no images, or other numbers of images.
    """
    _check_paired(found, truth, (1, 2))
    names, own = truth.cpu().unique(return_inverse=True)
    if found.dim() == 2:
        labels, shares = torch.arange(found.shape[1]), found.cpu().double()
        mine, weights = shares.argmax(1), shares.mean(0)
    else:
        labels, mine = found.cpu().unique(return_inverse=True)
        weights = mine.bincount().double() / len(mine)
    counts = (own * len(labels) + mine).bincount(minlength=len(names) * len(labels))
    counts = counts.reshape(len(names), len(labels))
    rows, columns = map(torch.from_numpy, linear_sum_assignment(counts.numpy(), maximize=True))
    matched, recall = torch.full_like(names, -1), torch.zeros(len(names), dtype=torch.float64)
    matched[rows] = labels[columns].to(matched)
    right, sizes = counts[rows, columns], counts.sum(1).double()
    recall[rows] = right / sizes[rows]
    excess = -sizes / len(own)
    excess[rows] += weights[columns]
    extra = weights.index_fill(0, columns, 0.0)
    weight = float(torch.cat([excess, extra]).abs().max())
    return ClassError(1 - int(right.sum()) / len(own), weight, names, matched, recall, counts)


@dataclass(frozen=True)
class PathError:
    """Order of the images along a motion against the true one.

    Attributes
    ----------
    leading
        Rank correlation (Spearman's, its absolute value) of the first principal coordinate with
        the true progress, 0 to 1.
    curve
        The same of the place along the principal curve of the coordinates, which also follows
        motions that are bent in them.
    """

    leading: float
    curve: float


def path_error(coordinates: Tensor, progress: Tensor) -> PathError:
    """Compare coordinates [N, size] with the true progress [N] along the one motion.

    Neither correlation sees the truth before it is compared: the axis is that of most variance
    and the curve is :func:`~cryoprob.metrics.principal_curve.principal_curve`. Coordinates that
    are all alike have 0.

    Raises
    ------
    InputError
        If there are other numbers of images, fewer than two, values that are not finite, or a
        progress that is the same for all.
    """
    _check_paired(coordinates, progress, (2,))
    varied = bool(torch.isfinite(progress).all()) and bool(progress.min() < progress.max())
    got = "one value for all, NaN or infinity"
    require(varied, "true progress", expected="finite numbers that vary", got=got)
    found = principal_curve(coordinates)
    return PathError(*(_rank_correlation(v, progress) for v in (found.leading, found.place)))


def _rank_correlation(one: Tensor, other: Tensor) -> float:
    if not bool(one.min() < one.max()):
        return 0.0
    return abs(float(spearmanr(one.cpu().numpy(), other.cpu().numpy()).statistic))


def _check_paired(found: Tensor, truth: Tensor, dims: tuple[int, ...]) -> None:
    fits = found.dim() in dims and truth.dim() == 1 and len(found) == len(truth) > 0
    shapes = " or ".join(("[N]", "[N, size]")[d - 1] for d in dims)
    got = f"shapes {list(found.shape)} and {list(truth.shape)}"
    require(fits, "conformations", expected=f"{shapes} and a truth [N] of as many images", got=got)
