"""Text regression: one score per text, or pair of texts."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from orchestrator.tasks.labelled import LabelledTask


class RegressionTask(LabelledTask):
    """Mean squared error, against labels and teacher alike; correlations of SciPy."""

    label_type = np.float32

    def label_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.mse_loss(logits.squeeze(-1), labels)

    def answers(self, logits: Tensor) -> Tensor:
        return logits.float().squeeze(-1)

    def metrics(self, labels: list[Any], predictions: list[Any]) -> dict[str, float]:
        """Correlations in [-1, 1], their mean as GLUE has it for STS-B, and the mean squared error.

        A constant prediction, whose correlation is not defined, gets 0, as the Matthews
        correlation of a constant class does: it tells nothing of the order.
        """
        scores, found = np.asarray(labels, np.float64), np.asarray(predictions, np.float64)
        pearson, spearman = _correlations(scores, found)
        return {
            "pearson": pearson,
            "spearman": spearman,
            "pearson_spearman": (pearson + spearman) / 2,
            "mse": float(np.square(scores - found).mean()),
        }


def _correlations(scores: np.ndarray, found: np.ndarray) -> tuple[float, float]:
    """Pearson's and Spearman's; both NaN if a prediction is not finite."""
    from scipy import stats

    if not np.isfinite(found).all():
        return math.nan, math.nan
    if np.ptp(found) == 0 or np.ptp(scores) == 0:
        return 0.0, 0.0
    with warnings.catch_warnings():
        # of nearly constant predictions, which are what a model begins with
        warnings.simplefilter("ignore", stats.NearConstantInputWarning)
        pearson = float(stats.pearsonr(scores, found).statistic)
    return pearson, float(stats.spearmanr(scores, found).statistic)
