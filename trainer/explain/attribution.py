"""An answer shared out among the voxels of a volume: the map, and what is measured of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

MAP_METHODS = ("integrated_gradients", "gradcam")
# The gap of completeness that is let pass: of the difference that is explained, or in logits.
TOLERANCE, LEAST_GAP = 0.05, 0.01


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Attribution:
    """What one volume's answer is made of.

    Attributes:
      values: (row, column, slice, channel), positive towards the positive class, the class or the
        finding that is explained, or a greater value. One channel alone where the method cannot
        tell modalities apart.
      logit: of the volume: of the positive class, a finding, or a class against the rest; or the
        value.
      baseline: the same of the baseline; None where the method has none.
      steps: gradients that were taken.
      one_sided: only what speaks for a positive `values` counts, whatever the answer: of a class
        that was chosen among several, and of values.
    """

    values: Floats
    logit: float
    baseline: float | None = None
    steps: int = 1
    one_sided: bool = False

    @property
    def gap(self) -> float | None:
        """How far the attributions are from summing to logit − baseline; None without baseline."""
        if self.baseline is None:
            return None
        return float(abs(self.values.sum() - (self.logit - self.baseline)))

    @property
    def complete(self) -> bool:
        """Whether the gap is within the tolerance; True for methods without the axiom."""
        if self.gap is None or self.baseline is None:
            return True
        return self.gap <= max(TOLERANCE * abs(self.logit - self.baseline), LEAST_GAP)

    def strength(self, method: str) -> Floats:
        """How much each voxel counted, (row, column, slice, channel), 0 or more.

        Integrated gradients: the size of the attribution. Grad-CAM: what speaks for the class that
        was predicted, or chosen, and 0 elsewhere, as published.
        """
        if method == "gradcam":
            towards = self.one_sided or self.logit > 0
            return np.maximum(self.values if towards else -self.values, 0.0)
        return np.abs(self.values)


def mean_of(attributions: Sequence[Attribution]) -> Attribution:
    """The attribution of several members' mean answer: the mean of theirs."""
    baselines = [one.baseline for one in attributions]
    known = [value for value in baselines if value is not None]
    return Attribution(
        values=np.mean([one.values for one in attributions], axis=0),
        logit=float(np.mean([one.logit for one in attributions])),
        baseline=float(np.mean(known)) if known else None,
        steps=max(one.steps for one in attributions),
        one_sided=attributions[0].one_sided,
    )


def rank_correlation(
    first: npt.ArrayLike, second: npt.ArrayLike, *, within: npt.NDArray[np.bool_]
) -> float | None:
    """Spearman's correlation of two maps over some voxels; None where one is constant there."""
    from scipy.stats import rankdata  # half a second

    ranks = [rankdata(np.asarray(values)[within]) for values in (first, second)]
    if any(rank.size == 0 or rank.min() == rank.max() for rank in ranks):
        return None
    return float(np.corrcoef(*ranks)[0, 1])
