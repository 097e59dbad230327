"""How the loss is minimised: full-batch gradient descent, SGD with momentum, Adam, AdamW.

To add one: a class here, its name in `OPTIMIZERS`, and in `trainer.proto` a message of the class's
name and fields. Only `build` needs torch, and imports it: the service, which validates, starts
without.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from modelrail_trainer.rules.bounds import Fraction, Real

if TYPE_CHECKING:
    import torch
    from torch import nn

StepSize = Annotated[float, Real("a step size above 0", above=0.0)]
Decay = Annotated[float, Real("a decay above 0 and below 1", above=0.0, below=1.0)]
WeightDecay = Annotated[float, Real("a finite number from 0", least=0.0)]
Epsilon = Annotated[float, Real("a number above 0", above=0.0)]


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientDescent:
    """w ← w - learning_rate · ∂loss/∂w, one step an epoch, along the gradient over all rows."""

    takes_all_rows: ClassVar[bool] = True

    learning_rate: StepSize

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Returns what changes the parameters by their gradients."""
        import torch

        return torch.optim.SGD(parameters, lr=self.learning_rate)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sgd:
    """Stochastic gradient descent on batches."""

    takes_all_rows: ClassVar[bool] = False

    learning_rate: StepSize
    momentum: Fraction = 0.0
    weight_decay: WeightDecay = 0.0

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Returns what changes the parameters by their gradients."""
        import torch

        return torch.optim.SGD(
            parameters,
            lr=self.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Adam:
    """Adam on batches: Kingma and Ba (2015), algorithm 1, with both bias corrections.

    The formula in the article that modelrail grew from leaves out the correction of the second
    moment, which makes the first steps up to 1/√(1 - beta2) ≈ 30 times too long; we keep to the
    paper.
    """

    takes_all_rows: ClassVar[bool] = False

    learning_rate: StepSize = 0.001
    beta1: Decay = 0.9
    beta2: Decay = 0.999
    epsilon: Epsilon = 1e-8

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Returns what changes the parameters by their gradients."""
        import torch

        weights = list(parameters)
        return torch.optim.Adam(
            weights,
            lr=self.learning_rate,
            betas=(self.beta1, self.beta2),
            eps=self.epsilon,
            fused=_can_be_fused(weights),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AdamW:
    """Adam with weights that shrink apart from the gradient: Loshchilov and Hutter (2019), alg. 2.

    Decay that passed through the gradient, as with SGD, would be divided by its root mean square:
    weights with large gradients would hardly shrink.
    """

    takes_all_rows: ClassVar[bool] = False

    learning_rate: StepSize = 0.001
    beta1: Decay = 0.9
    beta2: Decay = 0.999
    epsilon: Epsilon = 1e-8
    weight_decay: WeightDecay = 0.01

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Returns what changes the parameters by their gradients."""
        import torch

        weights = list(parameters)
        return torch.optim.AdamW(
            weights,
            lr=self.learning_rate,
            betas=(self.beta1, self.beta2),
            eps=self.epsilon,
            weight_decay=self.weight_decay,
            fused=_can_be_fused(weights),
        )


def _can_be_fused(weights: Sequence[nn.Parameter]) -> bool:
    """Whether one kernel can make a whole step.

    PyTorch takes six and more by default, which cost a quarter of a step of a perceptron, be it
    small or large. Its fused kernels know no complex numbers.
    """
    return all(weight.is_floating_point() for weight in weights)


Optimizer = GradientDescent | Sgd | Adam | AdamW

OPTIMIZERS: Mapping[str, type[Optimizer]] = {
    "gradient_descent": GradientDescent,
    "sgd": Sgd,
    "adam": Adam,
    "adamw": AdamW,
}
"""By their names in a specification."""
