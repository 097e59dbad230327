"""Quality figures of a model of language."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from modelrail_trainer.worker.part import Inputs, Part
from modelrail_trainer.worker.progress import made_progress

_PLACES_AT_ONCE = 16_384


def language_figures(
    predict: Callable[[Inputs], npt.NDArray[np.float32]], part: Part
) -> dict[str, float]:
    """Returns loss (nats a byte), perplexity, bits_per_byte, and accuracy of the next byte.

    Args:
        predict: Maps bytes uint8 [B, T] to logits [B, T, 256].
        part: Windows, and the byte after each of their bytes.
    """
    rows = max(1, _PLACES_AT_ONCE // part.inputs.shape[1])
    loss_sum, hits, places = 0.0, 0, 0
    for chosen in part.slices(rows):
        logits = predict(np.ascontiguousarray(part.inputs[chosen])).astype(np.float64)  # [B, T, C]
        targets = part.targets[chosen].astype(np.int64)[:, :, None]  # [B, T, 1]
        highest = logits.max(axis=2, keepdims=True)  # [B, T, 1]
        scores = np.take_along_axis(logits, targets, axis=2)  # [B, T, 1]
        sums = np.exp(logits - highest).sum(axis=2, keepdims=True)  # [B, T, 1]
        loss_sum += float((np.log(sums) + highest - scores).sum())
        hits += int((logits.argmax(axis=2) == targets[:, :, 0]).sum())
        places += targets.size
        made_progress()
    loss = loss_sum / places
    return {
        "loss": loss,
        # Infinite for a loss that no float64 can be the exponential of.
        "perplexity": math.exp(loss) if loss < 700 else math.inf,
        "bits_per_byte": loss / math.log(2),
        "accuracy": hits / places,
    }
