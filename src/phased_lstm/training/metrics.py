"""Figures of predictions, with those that suit classes of unequal size. Needs scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import missing_extra

try:
    from sklearn import metrics
except ImportError as error:
    raise missing_extra("train", "scikit-learn") from error

CLASSIFICATION = ("accuracy", "balanced_accuracy", "auroc", "auprc")
REGRESSION = ("mae", "rmse", "r2")


def classification(probabilities: NDArray[Any], targets: NDArray[Any]) -> dict[str, float]:
    """Return accuracy, balanced accuracy, AUROC and AUPRC.

    AUROC and AUPRC (average precision) are those of class 1 where there are two classes, otherwise the mean over
    the classes of one against the rest. Where the targets lack a class, they have no meaning and are left out, as is
    balanced accuracy where the targets are of one class.

    Args:
        probabilities: (N, C).
        targets: (N,) class numbers.
    """
    count = probabilities.shape[1]
    chosen = probabilities.argmax(axis=1)
    present = np.unique(targets)
    figures = {"accuracy": float((chosen == targets).mean())}
    if len(present) > 1:
        recalls = [float((chosen[targets == number] == number).mean()) for number in present]
        figures["balanced_accuracy"] = float(np.mean(recalls))
    if len(present) == count:
        ones = range(count) if count > 2 else [1]
        scores = [(targets == number, probabilities[:, number]) for number in ones]
        figures["auroc"] = float(np.mean([metrics.roc_auc_score(*pair) for pair in scores]))
        figures["auprc"] = float(np.mean([metrics.average_precision_score(*pair) for pair in scores]))
    return figures


def regression(predictions: NDArray[Any], targets: NDArray[Any]) -> dict[str, float]:
    """Return mean absolute error, root mean squared error and R2.

    Args:
        predictions: (N, K).
        targets: (N, K), NaN where missing; R2 is the mean over the K targets.
    """
    errors = predictions - targets
    known = ~np.isnan(targets)
    if np.isnan(errors[known]).any():
        # Those without a target are left out, and a prediction that is no number must not be.
        return dict.fromkeys(REGRESSION, float("nan"))
    mean = np.nansum(targets, axis=0) / np.maximum(known.sum(axis=0), 1)
    spread = np.nansum((targets - mean) ** 2, axis=0)
    figures = {
        "mae": float(np.nanmean(np.abs(errors))),
        "rmse": float(np.sqrt(np.nanmean(errors**2))),
    }
    if (spread > 0).all():
        figures["r2"] = float(np.mean(1.0 - np.nansum(errors**2, axis=0) / spread))
    return figures
