"""How the loss is minimised: full-batch gradient descent, SGD with momentum, Adam, AdamW."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import nn

from modelrail_trainer import spec


class Optimiser(Protocol):
    """Changes parameters by their gradients.

    Attributes:
        param_groups: As those of torch: the parameters, and the learning rate in `lr`.
    """

    param_groups: list[dict[str, Any]]

    def zero_grad(self) -> None:
        """Forgets the gradients."""

    def step(self) -> object:
        """Makes one step along the gradients."""

    def state_dict(self) -> dict[str, Any]:
        """Returns `state`, what is remembered of each parameter by its number, and its groups."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes back what `state_dict` returned."""


class GradientDescent:
    """w ← w - learning_rate · ∂loss/∂w. The loop gives it the gradient over all training rows."""

    def __init__(self, parameters: Iterable[nn.Parameter], *, learning_rate: float) -> None:
        self.param_groups: list[dict[str, Any]] = [
            {"params": list(parameters), "lr": learning_rate}
        ]

    def zero_grad(self) -> None:
        """Forgets the gradients."""
        for parameter in self.param_groups[0]["params"]:
            parameter.grad = None

    def step(self) -> None:
        """Makes one step; parameters without a gradient stay."""
        with torch.no_grad():
            for parameter in self.param_groups[0]["params"]:
                if parameter.grad is not None:
                    parameter.sub_(self.param_groups[0]["lr"] * parameter.grad)

    def state_dict(self) -> dict[str, Any]:
        """Returns that nothing is remembered."""
        return {"state": {}, "param_groups": []}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes nothing back."""


def build_optimiser(optimizer: spec.Optimizer, parameters: Iterable[nn.Parameter]) -> Optimiser:
    """Makes the optimiser of a specification.

    Raises:
        ValueError: There is none.
    """
    match optimizer:
        case spec.GradientDescent(learning_rate=rate):
            return GradientDescent(parameters, learning_rate=rate)
        case spec.Sgd() as sgd:
            return torch.optim.SGD(
                parameters,
                lr=sgd.learning_rate,
                momentum=sgd.momentum,
                weight_decay=sgd.weight_decay,
            )
        case spec.Adam() as adam:
            # Kingma and Ba (2015), algorithm 1, with both bias corrections. The formula in the
            # article that modelrail grew from leaves out the correction of the second moment, which
            # makes the first steps up to 1/√(1 - beta2) ≈ 30 times too long; we keep to the paper.
            return torch.optim.Adam(
                parameters,
                lr=adam.learning_rate,
                betas=(adam.beta1, adam.beta2),
                eps=adam.epsilon,
            )
        case spec.AdamW() as adamw:
            # Loshchilov and Hutter (2019), algorithm 2. Decay that passed through the gradient, as
            # with SGD, would be divided by its root mean square: weights with large gradients would
            # hardly shrink.
            return torch.optim.AdamW(
                parameters,
                lr=adamw.learning_rate,
                betas=(adamw.beta1, adamw.beta2),
                eps=adamw.epsilon,
                weight_decay=adamw.weight_decay,
            )
        case None:
            raise ValueError("the specification has no optimiser")


def set_learning_rate(optimiser: Optimiser, learning_rate: float) -> None:
    """Makes the next steps as long as this says."""
    for group in optimiser.param_groups:
        group["lr"] = learning_rate
