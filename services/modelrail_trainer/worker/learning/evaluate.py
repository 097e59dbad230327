"""Runs a model over a part of the data; PyTorch and ONNX Runtime are measured alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from modelrail_trainer.handover.journal import Metric
from modelrail_trainer.spec import Task
from modelrail_trainer.worker.evaluation.measure import Figures, Measure
from modelrail_trainer.worker.evaluation.undrawn import undrawn
from modelrail_trainer.worker.language.figures import language_figures
from modelrail_trainer.worker.learning.device import device_of
from modelrail_trainer.worker.part import Inputs, Part
from modelrail_trainer.worker.progress import made_progress

Predict = Callable[[Inputs], npt.NDArray[np.float32]]
_ROWS_AT_ONCE = 256


def evaluate(predict: Predict, part: Part, task: Task, *others: Measure) -> dict[str, float]:
    """Returns the figures of a part, see `ClassFigures` and `ValueFigures`.

    Those of language are told by `language_figures`.

    They are the same whatever the job minimises, so that jobs with different losses can be
    compared.

    Args:
        predict: Maps raw rows [B, *row_shape] to logits or values [B, outputs].
        part: Rows with their targets.
        task: Which figures are meant.
        others: Look at the same outputs.
    """
    if task is Task.LANGUAGE:
        return language_figures(predict, part)
    figures: Figures | None = None
    for chosen in part.slices(_ROWS_AT_ONCE):
        outputs = predict(part.inputs[chosen]).astype(np.float64)  # [B, outputs]
        figures = figures or _figures(task, outputs.shape[1])
        # The caller asks whether the figures are finite.
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            for measure in (figures, *others):
                measure.add(outputs, part.targets[chosen])
        made_progress()
    if figures is None:
        raise ValueError("a part without rows has no figures")
    return figures.values()


def _figures(task: Task, outputs: int) -> Figures:
    # torchmetrics takes a second to import, and the first step need not wait for it.
    with undrawn():
        from modelrail_trainer.worker.evaluation.classes import ClassFigures
        from modelrail_trainer.worker.evaluation.values import ValueFigures

    return ClassFigures(outputs) if task is Task.CLASSIFICATION else ValueFigures()


def torch_predict(network: nn.Module) -> Predict:
    """Returns the prediction of a PyTorch network, in evaluation mode and without gradients."""
    device = device_of(network)

    def predict(rows: Inputs) -> npt.NDArray[np.float32]:
        network.eval()
        with torch.inference_mode():
            outputs: npt.NDArray[np.float32] = (
                network(torch.from_numpy(rows).to(device)).cpu().numpy()
            )
        return outputs

    return predict


def as_metrics(
    figures: Mapping[str, float], *, split: str, epoch: int, runtime: str, step: int = 0
) -> tuple[Metric, ...]:
    """Returns figures as metrics of one part of the data."""
    return tuple(
        Metric(name=name, value=value, split=split, epoch=epoch, runtime=runtime, step=step)
        for name, value in figures.items()
    )
