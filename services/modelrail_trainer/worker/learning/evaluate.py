"""Quality figures, in NumPy, so that PyTorch and ONNX Runtime are measured alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from modelrail_trainer.journal import Metric
from modelrail_trainer.spec import Task
from modelrail_trainer.worker.part import Inputs, Part
from modelrail_trainer.worker.progress import made_progress

Predict = Callable[[Inputs], npt.NDArray[np.float32]]
_ROWS_AT_ONCE = 256


def evaluate(predict: Predict, part: Part, task: Task) -> dict[str, float]:
    """Returns loss and accuracy, or loss (which is the mean squared error), mse and mae.

    The loss of classes is the plain cross-entropy. Both are the same whatever the job minimises, so
    that jobs with different losses can be compared.

    Args:
        predict: Maps raw rows [B, *row_shape] to logits or values [B, outputs].
        part: Rows with their targets.
        task: Which figures are meant.
    """
    starts = range(0, len(part), _ROWS_AT_ONCE)
    chunks = []
    for start in starts:
        chunks.append(predict(part.inputs[start : start + _ROWS_AT_ONCE]))
        made_progress()
    outputs = np.concatenate(chunks).astype(np.float64)  # [N, outputs]
    with np.errstate(over="ignore", invalid="ignore"):  # the caller asks whether it is finite
        if task is Task.CLASSIFICATION:
            highest = outputs.max(axis=1, keepdims=True)  # [N, 1]
            shifted = outputs - highest  # [N, C]
            chosen = shifted[np.arange(len(part)), part.targets.astype(np.int64)]  # [N]
            losses = np.log(np.exp(shifted).sum(axis=1)) - chosen  # [N]
            hits = outputs.argmax(axis=1) == part.targets  # [N]
            return {"loss": float(losses.mean()), "accuracy": float(hits.mean())}
        errors = outputs - part.targets  # [N, outputs]
        mse = float(np.square(errors).mean())
        return {"loss": mse, "mse": mse, "mae": float(np.abs(errors).mean())}


def torch_predict(network: nn.Module) -> Predict:
    """Returns the prediction of a PyTorch network, in evaluation mode and without gradients."""

    def predict(rows: Inputs) -> npt.NDArray[np.float32]:
        network.eval()
        with torch.inference_mode():
            outputs: npt.NDArray[np.float32] = network(torch.from_numpy(rows)).numpy()
        return outputs

    return predict


def as_metrics(
    figures: Mapping[str, float], *, split: str, epoch: int, runtime: str
) -> tuple[Metric, ...]:
    """Returns figures as metrics of one part of the data."""
    return tuple(
        Metric(name=name, value=value, split=split, epoch=epoch, runtime=runtime)
        for name, value in figures.items()
    )
