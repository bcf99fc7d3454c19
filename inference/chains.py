"""Draws of several Markov chains: whether they agree, and what they say of an approximation.

The posterior of a map with hidden poses has a gauge: a turn, a shift or (without CTF) a mirror of
the map that the poses take up changes nothing. A fixed grid of poses breaks it only in part, and
the chains may sit in different frames. So convergence is judged on numbers that no frame changes:
the power of every shell, and the log joint density.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from cryoprob.checks import require
from cryoprob.fourier.shells import shell_mean
from cryoprob.fourier.transforms import fft3
from cryoprob.types import Maps

if TYPE_CHECKING:
    from xarray import Dataset

__all__ = ["Chains", "Diagnostics", "Score", "score"]

_NORMAL_95 = 1.6448536269514722
"""Half a 90 % interval of a normal law, in standard deviations."""


@dataclass(frozen=True, eq=False)
class Diagnostics:
    """Convergence of some chains, for every gauge-free number.

    Attributes
    ----------
    rhat
        Rank-normalized split R-hat, 1 at convergence: ``power`` [S] and ``log_joint`` [].
    ess
        Effective number of draws of a mean, the same names.

    Notes
    -----
    Vehtari et al. 2021, Bayesian Anal. 16, 667.
    """

    rhat: "Dataset"
    ess: "Dataset"

    @property
    def worst_rhat(self) -> float:
        """The largest R-hat of all."""
        return _extreme(self.rhat, max)

    @property
    def least_ess(self) -> float:
        """The smallest effective number of draws of all."""
        return _extreme(self.ess, min)


@dataclass(frozen=True, eq=False)
class Chains:
    """C chains of S draws.

    Attributes
    ----------
    volume
        [C, S, D, D, D].
    log_joint
        ``log p(images | volume) + log p(volume)`` in nats, poses summed out (or given), [C, S]
        float64.
    rotation, shift
        Poses drawn with the volume, [C, S, N, 3, 3] and [C, S, N, 2] (Angstrom); None where they
        were summed out.
    sigma2
        Noise spectra drawn with the volume, [C, S, G, shells], or None.
    log_likelihood
        ``log p(image | volume)`` of every image, [C, S, N] float64, poses summed out (or given);
        None where only the sum was kept.
    """

    volume: Maps
    log_joint: Tensor
    rotation: Tensor | None = None
    shift: Tensor | None = None
    sigma2: Tensor | None = None
    log_likelihood: Tensor | None = None

    def power(self) -> Tensor:
        """Mean of |V_k|^2 of every shell and draw, [C, S, shells]."""
        return shell_mean(fft3(self.volume).abs() ** 2)

    def dataset(self) -> "Dataset":
        """The gauge-free numbers as an xarray Dataset, dimensions chain, draw and shell."""
        from xarray import Dataset

        dims, power = ("chain", "draw"), self.power().double().cpu().numpy()
        log_joint = self.log_joint.double().cpu().numpy()
        return Dataset({"power": ((*dims, "shell"), power), "log_joint": (dims, log_joint)})

    def diagnose(self) -> Diagnostics:
        """R-hat and effective sample sizes.

        Raises
        ------
        InputError
            If there are fewer than two chains, or fewer than four draws in each.
        """
        chains, draws = self.log_joint.shape
        require(
            chains >= 2 and draws >= 4,
            "chains",
            expected="two or more, of four draws or more",
            got=f"{chains} of {draws}",
        )
        import arviz

        numbers = self.dataset()  # what ArviZ 0.2x and 1.x both take
        rhat = arviz.rhat(numbers)  # type: ignore[no-untyped-call]
        return Diagnostics(rhat, arviz.ess(numbers, method="mean"))  # type: ignore[no-untyped-call]


@dataclass(frozen=True, eq=False)
class Score:
    """A Gaussian approximation of the map's posterior held against draws of it.

    Attributes
    ----------
    bias
        Its mean less the draws', in standard deviations of the draws, [D, D, D].
    ratio
        Its standard deviation over the draws', [D, D, D].
    coverage
        Share of the draws inside its central 90 % interval, [D, D, D].
    """

    bias: Maps
    ratio: Maps
    coverage: Maps

    def summary(self) -> dict[str, float]:
        """Root mean square bias, median ratio and mean coverage over the voxels."""
        return {
            "bias": float(self.bias.square().mean().sqrt()),
            "ratio": float(self.ratio.median()),
            "coverage": float(self.coverage.mean()),
        }


def score(draws: Maps, mean: Maps, std: Maps) -> Score:
    """Hold a mean and a standard deviation [D, D, D] against draws [*, D, D, D].

    The draws must share the approximation's frame: poses given, or chains that started at its map
    and stayed in its mode.

    Raises
    ------
    InputError
        If there are fewer than two draws.
    """
    flat = draws.reshape(-1, *mean.shape)
    require(len(flat) > 1, "draws", expected="two or more", got=str(len(flat)))
    spread = flat.std(0)
    inside = (flat - mean).abs() <= _NORMAL_95 * std
    coverage = inside.to(mean.dtype).mean(0)
    return Score((mean - flat.mean(0)) / spread, std / spread, coverage)


def _extreme(numbers: "Dataset", choose: Any) -> float:
    return float(choose(choose(values.values.flat) for values in numbers.data_vars.values()))
