"""Text classification: one class per text, or pair of texts."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from orchestrator.tasks.labelled import LabelledTask


class ClassificationTask(LabelledTask):
    """Cross-entropy, metrics of scikit-learn."""

    label_type = np.int64

    def answers(self, logits: Tensor) -> Tensor:
        return logits.argmax(-1)

    def metrics(self, labels: list[Any], predictions: list[Any]) -> dict[str, float]:
        """F1 of the second of two classes, the mean over more; `accuracy_f1` as GLUE has it for
        MRPC and QQP."""
        from sklearn import metrics

        average = "binary" if len(self.data.label_names) == 2 else "macro"
        accuracy = float(metrics.accuracy_score(labels, predictions))
        f1 = float(metrics.f1_score(labels, predictions, average=average, zero_division=0))
        return {
            "accuracy": accuracy,
            "f1": f1,
            "matthews": float(metrics.matthews_corrcoef(labels, predictions)),
            "accuracy_f1": (accuracy + f1) / 2,
        }
