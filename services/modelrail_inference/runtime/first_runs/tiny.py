"""Whether a model's runs are so short that a second thread costs more than it saves."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelrail_inference.model.definition import ModelSettings
from modelrail_inference.model.signature import Signature
from modelrail_inference.runtime.first_runs.batch_sizes import has_fixed_items
from modelrail_inference.runtime.first_runs.made_inputs import sample_inputs, smallest_inputs
from modelrail_inference.runtime.session import Run, RunError, Session

_ITEM_SECONDS = 0.0001
"""Waking a second thread takes longer than such a run, and more processor time than it."""
_BATCH_SECONDS = 0.001
"""Of the largest batch: what threads save of it is less than what a caller notices."""
_MOST_ROWS = 10_000
"""Rows of the largest batch: a look at more could take seconds, each being a tiny run or less."""
_MOST_BYTES = 16 << 20
"""Inputs of the largest batch: to read as much takes longer than a tiny run."""
_TRIES = 5
"""Tries to be quick: a run can be disturbed."""

Inputs = Mapping[str, NDArray[Any]]


def is_tiny(
    session: Session, signature: Signature, settings: ModelSettings, *, max_batch_size: int
) -> bool:
    """Whether a run of one item takes less than 0.1 ms, as far as the calling thread shows.

    Judged is what may come: the largest sample request; without samples zeros of the longest edge,
    or of the sizes of the graph. A model whose sizes nobody knows is not tiny: it can be a filter,
    for which a picture of one pixel says nothing about those of a camera.

    Counted is the processor time of the calling thread, as the machine may be busy; and after the
    warm-up, as a first run takes longer than those that follow.

    Args:
        session: The loaded model, warmed up.
        signature: Its served inputs and outputs, and the mask that the server fills.
        settings: What the configuration says.
        max_batch_size: Largest batch; 0 when the model has no batch dimension.
    """
    inputs = _largest_item(signature, settings, max_batch_size)
    return inputs is not None and _runs_within(_ITEM_SECONDS, session, signature, inputs)


def is_tiny_in_batches(
    session: Session, signature: Signature, settings: ModelSettings, *, max_batch_size: int
) -> bool:
    """Whether besides that a run of the largest batch takes less than 1 ms.

    Args:
        session: The loaded model, warmed up, with one thread: what others take is not counted.
        signature: Its served inputs and outputs, and the mask that the server fills.
        settings: What the configuration says.
        max_batch_size: Largest batch; 0 when the model has no batch dimension.
    """
    inputs = _largest_item(signature, settings, max_batch_size)
    if inputs is None or not _runs_within(_ITEM_SECONDS, session, signature, inputs):
        return False
    if max_batch_size <= 1:
        return True
    rows = max(max_batch_size, *settings.batch_buckets, 1)
    row_bytes = sum(array.nbytes / len(array) for array in inputs.values())
    if rows > _MOST_ROWS or rows * row_bytes > _MOST_BYTES:
        return False
    batch = {name: np.resize(array, (rows, *array.shape[1:])) for name, array in inputs.items()}
    return _runs_within(_BATCH_SECONDS, session, signature, batch)


def _largest_item(
    signature: Signature, settings: ModelSettings, max_batch_size: int
) -> Inputs | None:
    """Returns the inputs to judge a model by; None where nobody knows how large they are."""
    padding = settings.padding
    if settings.warmup:
        samples = [sample_inputs(sample, signature, settings) for sample in settings.warmup]
        return max(samples, key=lambda inputs: sum(array.nbytes for array in inputs.values()))
    if not has_fixed_items(signature, padding, batched=max_batch_size > 0):
        return None
    return smallest_inputs(signature, 1, padding, edge=padding.edges[-1] if padding else 0)


def _runs_within(seconds: float, session: Session, signature: Signature, inputs: Inputs) -> bool:
    outputs = [spec.name for spec in signature.outputs]
    for _ in range(_TRIES):
        started = time.thread_time()
        try:
            session.run(inputs, outputs, Run())
        except RunError:  # zeros may be no inputs of this model
            return False
        taken = time.thread_time() - started
        if taken < seconds or taken > _TRIES * seconds:
            break
    return taken < seconds
