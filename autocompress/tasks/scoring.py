"""Metrics by name, each with its direction; scikit-learn and scipy compute them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from autocompress.errors import InputError
from autocompress.extensions import find_extension

Array = NDArray[Any]
RECALLED = 10
"""k of recall@k and nDCG@k where the name does not say it."""


@dataclass(frozen=True)
class Metric:
    """A figure of all outputs and all targets of a split.

    Attributes:
        name: as in the reports.
        compute: of outputs and targets, both with one row a sample.
        direction: "maximize" or "minimize".
    """

    name: str
    compute: Callable[[Tensor, Tensor], float]
    direction: str


def metric_named(name: str) -> Metric:
    """The metric of that name: one of `METRICS`, `recall@5`, `ndcg@5`, or `package.module:function`.

    Such a function takes outputs and targets; its attribute `direction` says "maximize" (the default) or "minimize".

    Raises:
        InputError: no such metric.
    """
    base, at, k = name.partition("@")
    if at and base in ("recall", "ndcg") and k.isdecimal() and int(k) > 0:
        rank = int(k)
        of = recall_at if base == "recall" else ndcg_at
        return Metric(name, lambda outputs, targets: of(outputs, targets, rank), "maximize")
    if name in METRICS:
        return Metric(name, *METRICS[name])
    if ":" not in name:
        raise InputError(f"a metric must be one of {', '.join(METRICS)} or package.module:function, but got {name!r}")
    function = find_extension("metric", name, name, METRICS)
    direction = getattr(function, "direction", "maximize")
    if direction not in ("maximize", "minimize"):
        raise InputError(f"the direction of metric {name!r} must be 'maximize' or 'minimize', but is {direction!r}")
    return Metric(getattr(function, "__name__", "metric"), function, direction)


def accuracy(outputs: Tensor, targets: Tensor) -> float:
    """Share of samples whose largest output is that of their class, in [0, 1]."""
    return float((outputs.argmax(-1) == targets).double().mean())


def worst_class_accuracy(outputs: Tensor, targets: Tensor) -> float:
    """The accuracy within the class where it is smallest, of the classes that occur."""
    hits = outputs.argmax(-1) == targets
    return min(float(hits[targets == label].double().mean()) for label in targets.unique())


def f1(outputs: Tensor, targets: Tensor) -> float:
    """Macro average over the classes of the F1 score."""
    from sklearn.metrics import f1_score

    return float(f1_score(_array(targets), _array(outputs.argmax(-1)), average="macro", zero_division=0.0))


def auc(outputs: Tensor, targets: Tensor) -> float:
    """Area under the ROC curve; of several classes the macro average of one against the rest."""
    from sklearn.metrics import roc_auc_score

    probabilities = _probabilities(outputs)
    if probabilities.shape[1] == 2:
        return float(roc_auc_score(_array(targets), probabilities[:, 1]))
    labels = list(range(probabilities.shape[1]))
    return float(roc_auc_score(_array(targets), probabilities, multi_class="ovr", labels=labels))


def log_loss(outputs: Tensor, targets: Tensor) -> float:
    """Mean negative log-likelihood of the classes, nats."""
    from sklearn.metrics import log_loss as mean_log_loss

    probabilities = _probabilities(outputs)
    return float(mean_log_loss(_array(targets), probabilities, labels=list(range(probabilities.shape[1]))))


def rmse(outputs: Tensor, targets: Tensor) -> float:
    """Root of the mean squared error of single values."""
    from sklearn.metrics import root_mean_squared_error

    return float(root_mean_squared_error(_array(targets), _array(outputs.reshape(len(outputs)))))


def spearman(outputs: Tensor, targets: Tensor) -> float:
    """Spearman's rank correlation of single values, in [-1, 1]."""
    from scipy.stats import spearmanr

    return float(spearmanr(_array(outputs.reshape(len(outputs))), _array(targets)).statistic)


def equal_error_rate(outputs: Tensor, targets: Tensor) -> float:
    """The rate at which false acceptances equal false rejections, of two classes; linear between thresholds."""
    from sklearn.metrics import roc_curve

    accepted, recalled, _ = roc_curve(_array(targets), _probabilities(outputs)[:, 1])
    rejected = 1 - recalled  # falls while `accepted` rises
    after = int(np.argmax(accepted >= rejected))
    if after == 0:
        return float(accepted[0])
    gap = (accepted - rejected)[after - 1 : after + 1]
    share = -gap[0] / (gap[1] - gap[0])
    return float(accepted[after - 1] + share * (accepted[after] - accepted[after - 1]))


def mean_iou(outputs: Tensor, targets: Tensor) -> float:
    """Mean over the classes that occur of intersection over union; classes are along dimension 1 of the outputs."""
    from sklearn.metrics import jaccard_score

    labels = np.unique(_array(targets))
    return float(
        jaccard_score(_array(targets).ravel(), _array(outputs.argmax(1)).ravel(), labels=labels, average="macro")
    )


def recall_at(outputs: Tensor, targets: Tensor, k: int = RECALLED) -> float:
    """Mean over the rows of the share of relevant items (targets above 0) among the k largest outputs."""
    relevant = targets > 0
    top = outputs.topk(min(k, outputs.shape[1])).indices
    found = relevant.gather(1, top).sum(1)
    total = relevant.sum(1).clamp(max=k)
    kept = total > 0
    return float((found[kept] / total[kept]).double().mean())


def ndcg_at(outputs: Tensor, targets: Tensor, k: int = RECALLED) -> float:
    """Mean over the rows of the normalised discounted cumulative gain of the k largest outputs."""
    from sklearn.metrics import ndcg_score

    return float(ndcg_score(_array(targets), _array(outputs), k=k))


def perplexity(outputs: Tensor, targets: Tensor) -> float:
    """The exponential of the mean negative log-likelihood of the tokens whose target is not -100."""
    return float(F.cross_entropy(outputs.flatten(0, -2), targets.flatten(), ignore_index=-100).exp())


METRICS: dict[str, tuple[Callable[[Tensor, Tensor], float], str]] = {
    "accuracy": (accuracy, "maximize"),
    "worst_class_accuracy": (worst_class_accuracy, "maximize"),
    "f1": (f1, "maximize"),
    "auc": (auc, "maximize"),
    "log_loss": (log_loss, "minimize"),
    "rmse": (rmse, "minimize"),
    "spearman": (spearman, "maximize"),
    "equal_error_rate": (equal_error_rate, "minimize"),
    "mean_iou": (mean_iou, "maximize"),
    "recall": (recall_at, "maximize"),
    "ndcg": (ndcg_at, "maximize"),
    "perplexity": (perplexity, "minimize"),
}
"""Name -> function of (outputs, targets), and direction."""


def _array(values: Tensor) -> Array:
    return values.detach().cpu().numpy()


def _probabilities(outputs: Tensor) -> Array:
    """Of each class, shape (n, n_classes); a single output is the logit of class 1."""
    if outputs.dim() == 1 or outputs.shape[-1] == 1:
        positive = outputs.reshape(len(outputs)).double().sigmoid()
        return np.stack([1 - _array(positive), _array(positive)], axis=1)
    return _array(outputs.double().softmax(-1))
