"""Which epoch's weights are kept, and when more epochs are given up."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from modelrail_trainer import spec
from modelrail_trainer.failure import DataError


class BestEpoch:
    """The best epoch so far by a figure of the validation rows, with a copy of its weights.

    Attributes:
        number: From 1; 0 before the first epoch.
        figure: Its figure.
        weights: Its weights.
    """

    def __init__(self, selection: spec.Selection) -> None:
        self.number = 0
        self.figure = float("nan")
        self.weights: dict[str, Tensor] = {}
        self._selection = selection

    def go_on(self, number: int, figure: float, weights: dict[str, Tensor]) -> None:
        """Takes over what a checkpoint knows of the best epoch."""
        self.number, self.figure, self.weights = number, figure, weights

    def consider(self, number: int, validation: Mapping[str, float], network: nn.Module) -> None:
        """Takes an epoch that is better; of equal ones, the first stays.

        Raises:
            DataError: The validation rows are such that the figure has no value.
        """
        figure = validation.get(self._selection.metric)
        if figure is None:
            raise DataError(
                f"selection.metric: {self._selection.metric} has no value on the validation rows, "
                "whose targets are all the same; choose another figure, or more validation rows"
            )
        higher_is_better = self._selection.metric in spec.HIGHER_IS_BETTER
        better = figure > self.figure if higher_is_better else figure < self.figure
        if self.number == 0 or better:
            self.number, self.figure = number, figure
            # A copy: the optimiser changes the network's own tensors in place.
            self.weights = {name: value.clone() for name, value in network.state_dict().items()}

    def gives_up(self, number: int) -> bool:
        """Tells whether the epochs since the best one have used up the patience."""
        patience = self._selection.patience_epochs
        return 0 < patience <= number - self.number

    def restore(self, network: nn.Module) -> None:
        """Gives the network the weights of the best epoch, unless the last ones are wanted."""
        if not self._selection.keep_last:
            network.load_state_dict(self.weights)
