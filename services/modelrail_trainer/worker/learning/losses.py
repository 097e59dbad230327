"""What is minimised, as plain formulas.

Shapes: B rows of a batch, C classes. Every loss is the mean over a batch, a tensor of shape []; a
mean in which some rows count for more than others has its place in `row_weights` too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from modelrail_trainer import spec

LossFunction = Callable[[Tensor, Tensor], Tensor]
RowWeights = Callable[[Tensor], Tensor]


def mean_squared_error(predictions: Tensor, targets: Tensor) -> Tensor:
    """Mean of (prediction - target)², []; both arguments [B, outputs]."""
    return (predictions - targets).square().mean()


def mean_absolute_error(predictions: Tensor, targets: Tensor) -> Tensor:
    """Mean of |prediction - target|, []; both arguments [B, outputs]."""
    return (predictions - targets).abs().mean()


def huber(predictions: Tensor, targets: Tensor, *, delta: float) -> Tensor:
    """Mean of ½ e² up to |e| = delta and of the tangent beyond, []; both arguments [B, outputs].

    Huber (1964): an outlier pulls with the force `delta`, however far it lies.
    """
    distance = (predictions - targets).abs()  # [B, outputs]
    near = distance.clamp(max=delta)  # [B, outputs]
    # Near: near = distance, so ½ distance². Far: near = delta, so delta · (distance - ½ delta).
    return (near * (distance - 0.5 * near)).mean()


def cross_entropy(logits: Tensor, classes: Tensor) -> Tensor:
    """Mean of -log softmax(logits)[class], []; logits [B, C], class numbers int64 [B]."""
    # -log softmax(z)[c] = log Σ exp z - z[c], in one kernel: in parts it takes three times as long,
    # which is a fifth of a small network's step.
    return torch.nn.functional.cross_entropy(logits, classes)


def weighted_cross_entropy(
    logits: Tensor, classes: Tensor, *, class_weights: Sequence[float], label_smoothing: float
) -> Tensor:
    """Cross-entropy from smoothed targets, each class with its weight, [].

    Smoothing (Szegedy et al., 2016) gives every class ε / C and the right one 1 - ε more.

    Args:
        logits: [B, C].
        classes: Class numbers, int64 [B].
        class_weights: C of them, or none for 1 each.
        label_smoothing: ε.
    """
    weights = logits.new_tensor(class_weights or [1.0] * logits.shape[1])  # [C]
    log_probabilities = logits.log_softmax(dim=1)  # [B, C]
    one_hot = _one_hot(classes, logits)  # [B, C]
    smoothed = (1 - label_smoothing) * one_hot + label_smoothing / logits.shape[1]  # [B, C]
    surprise = -(smoothed * log_probabilities * weights).sum(dim=1)  # [B]
    # A mean in which a row counts as much as its class: divided by weights, not by rows.
    return surprise.sum() / weights[classes].sum()


def binary_cross_entropy(logits: Tensor, classes: Tensor) -> Tensor:
    """Mean of -log p(class) with p(1) = sigmoid(z), []; logits [0, z] [B, 2], int64 [B]."""
    z = logits[:, 1] - logits[:, 0]  # [B]
    # -log sigmoid(z) = log(1 + exp(-z)) = softplus(-z), and for class 0 softplus(z).
    signs = 1 - 2 * classes.to(z.dtype)  # [B], +1 for class 0 and -1 for class 1
    return torch.nn.functional.softplus(signs * z).mean()


def at_each_place(loss_of: LossFunction) -> LossFunction:
    """Returns a loss of classes for rows in which every place has one.

    It takes logits [B, T, C] and class numbers [B, T], and is the mean over all places.
    """

    def loss(logits: Tensor, classes: Tensor) -> Tensor:
        return loss_of(logits.flatten(0, 1), classes.flatten().long())

    return loss


def kl_divergence(logits: Tensor, classes: Tensor, *, temperature: float) -> Tensor:
    """Mean of Σ q · (log q - log p), q = softmax(one-hot / temperature), p = softmax(logits), [].

    Log q does not depend on the weights, so the gradient is that of cross-entropy with the targets
    q. Only the value differs: 0 says that nothing is left to learn.

    Args:
        logits: [B, C].
        classes: Class numbers, int64 [B].
        temperature: Near 0 the targets are one-hot, and the loss is plain cross-entropy.
    """
    log_p = logits.log_softmax(dim=1)  # [B, C]
    log_q = (_one_hot(classes, logits) / temperature).log_softmax(dim=1)  # [B, C]
    return (log_q.exp() * (log_q - log_p)).sum(dim=1).mean()


def _one_hot(classes: Tensor, logits: Tensor) -> Tensor:
    """Returns 1 at each row's class and 0 elsewhere, [B, C], in the type of the logits."""
    every = torch.arange(logits.shape[1], device=logits.device)  # [C]
    return (classes.unsqueeze(1) == every).to(logits.dtype)


def loss_function(loss: spec.Loss | None) -> LossFunction:  # noqa: PLR0911  # one return a kind
    """Returns the function of a specification.

    Raises:
        ValueError: There is none.
    """
    match loss:
        case spec.MeanSquaredError():
            return mean_squared_error
        case spec.MeanAbsoluteError():
            return mean_absolute_error
        case spec.Huber(delta=delta):
            return partial(huber, delta=delta)
        case spec.CrossEntropy(class_weights=(), label_smoothing=0.0):
            return cross_entropy
        case spec.CrossEntropy() as smoothed:
            return partial(
                weighted_cross_entropy,
                class_weights=smoothed.class_weights,
                label_smoothing=smoothed.label_smoothing,
            )
        case spec.BinaryCrossEntropy():
            return binary_cross_entropy
        case spec.KlDivergence(temperature=temperature):
            return partial(kl_divergence, temperature=temperature)
        case None:
            raise ValueError("the specification has no loss")


def row_weights(loss: spec.Loss | None) -> RowWeights | None:
    """Returns how much each row counts in the mean of a loss; None: one as much as another.

    The function maps targets, class numbers [B] or [B, T], to weights of the same shape, float64.
    """
    match loss:
        case spec.CrossEntropy(class_weights=weights) if weights:
            of_class = torch.tensor(weights, dtype=torch.float64)  # [C]
            return lambda classes: of_class[classes.long()]
        case _:
            return None
