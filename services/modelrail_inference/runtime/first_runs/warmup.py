"""The first runs of a model, before it is ready: those that its configuration names, or a guess.

The first run of each shape plans memory and picks kernels; a model that cannot run at all shows it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, product
from typing import Any

import structlog
from numpy.typing import NDArray

from modelrail_inference.model.definition import LoadError, ModelSettings, TransientLoadError
from modelrail_inference.model.signature import DYNAMIC, Signature
from modelrail_inference.runtime.first_runs.made_inputs import (
    sample_inputs,
    sample_name,
    smallest_inputs,
)
from modelrail_inference.runtime.session import (
    OutOfMemory,
    Run,
    RunError,
    RunTerminatedError,
    Session,
)
from modelrail_inference.threads.limit import ThreadLimitReached, start_thread

_log = structlog.get_logger(__name__)

_MOST_SIZES = 64
"""Sizes that run although no sample asks for them: a version is waited for meanwhile, and memory
that a session took for one size it keeps."""


@dataclass(frozen=True, slots=True)
class _FirstRun:
    """Inputs to run.

    Attributes:
        name: What they are called in messages.
        inputs: The inputs by name.
        guessed: Whether the sizes are a guess: a refusal of the model then says nothing about it.
        needed: Whether the model is not served if there is no time or memory for them.
        count: How often they run.
    """

    name: str
    inputs: dict[str, NDArray[Any]]
    guessed: bool
    needed: bool
    count: int = 1


def warm_up(
    session: Session,
    signature: Signature,
    settings: ModelSettings,
    *,
    max_batch_size: int,
    timeout_seconds: float,
    only_needed: bool = False,
) -> None:
    """Runs the sample requests; without them zeros, in each length and size that batches can have.

    Samples run as requests like them will: padded to an edge, filled up to a batch bucket. Without
    samples it is each edge with each bucket, or one item where there are none; what else can be of
    any size is 1. Of these only the first has to run: a model that finds no time or memory for the
    larger ones is served, and its first request of such a size takes longer or fails.

    Args:
        session: The loaded model.
        signature: Its served inputs and outputs, and the mask that the server fills.
        settings: What the configuration says.
        max_batch_size: Largest batch; 0 when the model has no batch dimension.
        timeout_seconds: Longest time of all runs together.
        only_needed: Whether to run only what has to.

    Raises:
        LoadError: A sample does not fit the model, cannot be read or cannot be run.
        TransientLoadError: The samples, or the first run without them, take too long or find too
            little memory; or the system allows no thread.
    """
    run = Run()
    timer = threading.Timer(timeout_seconds, run.terminate)
    timer.daemon = True
    try:
        start_thread(timer)
    except ThreadLimitReached as error:
        raise TransientLoadError(str(error.strerror)) from error
    outputs = [spec.name for spec in signature.outputs]
    try:
        for first in _first_runs(signature, settings, max_batch_size):
            if only_needed and not first.needed:
                break
            if not _run(session, first, outputs, run):
                break
    except RunTerminatedError as error:
        raise TransientLoadError(f"the warm-up took longer than {timeout_seconds:g} s") from error
    finally:
        timer.cancel()


def _run(session: Session, first: _FirstRun, outputs: list[str], run: Run) -> bool:
    """Runs as often as is said; returns whether others are to be run."""
    try:
        for _ in range(first.count):
            session.run(first.inputs, outputs, run)
    except RunTerminatedError:
        if first.needed:
            raise
        reason = "there is no more time"
    except OutOfMemory as error:
        if first.needed:
            raise TransientLoadError(f"{first.name} failed: {error}") from error
        reason = str(error)
    except RunError as error:
        if not first.guessed:
            raise LoadError(f"{first.name} failed: {error}") from error
        # The sizes are a guess; a model that takes only even lengths is not broken.
        reason = f"the model refuses them: {error}"
    else:
        return True
    shapes = {name: list(array.shape) for name, array in first.inputs.items()}
    _log.warning("warm-up ended early", shapes=shapes, reason=reason)
    return False


def _first_runs(
    signature: Signature, settings: ModelSettings, max_batch_size: int
) -> Iterator[_FirstRun]:
    if settings.warmup:
        for sample in settings.warmup:
            inputs = sample_inputs(sample, signature, settings)
            yield _FirstRun(sample_name(sample), inputs, False, True, sample.count)
        return
    padding = settings.padding
    sizes = [spec.shape[1:] if max_batch_size else spec.shape for spec in signature.inputs]
    guessed = any(DYNAMIC in shape for shape in sizes)
    edges = padding.edges if padding else (0,)
    every = product(edges, settings.batch_buckets or (1,))
    for number, (edge, rows) in enumerate(islice(every, _MOST_SIZES)):
        inputs = smallest_inputs(signature, rows, padding, edge=edge)
        yield _FirstRun("the warm-up run", inputs, guessed, needed=number == 0)
