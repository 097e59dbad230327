"""What is minimised, as plain formulas."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from modelrail_trainer import spec

LossFunction = Callable[[Tensor, Tensor], Tensor]


def mean_squared_error(predictions: Tensor, targets: Tensor) -> Tensor:
    """Mean of (prediction - target)², []; both arguments [B, outputs]."""
    return (predictions - targets).square().mean()


def cross_entropy(logits: Tensor, classes: Tensor) -> Tensor:
    """Mean of -log softmax(logits)[class], []; logits [B, C], class numbers int64 [B]."""
    # log softmax(z)[c] = z[c] - log Σ exp z, with the sum done so that exp cannot overflow.
    chosen = logits.gather(1, classes.unsqueeze(1)).squeeze(1)  # [B]
    return (logits.logsumexp(dim=1) - chosen).mean()


def loss_function(loss: spec.Loss) -> LossFunction:
    """Returns the function of a specification."""
    return cross_entropy if isinstance(loss, spec.CrossEntropy) else mean_squared_error
