"""The first runs of a model, before it is ready: those that its configuration names, or a guess.

The first run of each shape plans memory and picks kernels; a model that cannot run at all shows it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import structlog
from numpy.typing import NDArray

from modelrail_inference.repository.definition import LoadError, ModelSettings, TransientLoadError
from modelrail_inference.runtime.made_inputs import sample_inputs, sample_name, smallest_inputs
from modelrail_inference.runtime.session import (
    OutOfMemory,
    Run,
    RunError,
    RunTerminatedError,
    Session,
)
from modelrail_inference.signature import DYNAMIC, Signature
from modelrail_inference.thread_limit import ThreadLimitReached, start_thread

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _FirstRun:
    """Inputs to run. Where the sizes are a guess, a refusal of the model says nothing about it."""

    name: str
    inputs: dict[str, NDArray[Any]]
    guessed: bool
    count: int = 1


def warm_up(
    session: Session,
    signature: Signature,
    settings: ModelSettings,
    *,
    max_batch_size: int,
    timeout_seconds: float,
) -> None:
    """Runs the sample requests; without them the smallest zeros, in every batch size there is.

    Args:
        session: The loaded model.
        signature: Its served inputs and outputs, and the mask that the server fills.
        settings: What the configuration says.
        max_batch_size: Largest batch; 0 when the model has no batch dimension.
        timeout_seconds: Longest time of all runs together.

    Raises:
        LoadError: A sample does not fit the model, cannot be read or cannot be run.
        TransientLoadError: The runs take too long, find too little memory, or the system allows no
            thread.
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
            for _ in range(first.count):
                if not _run(session, first, outputs, run):
                    break
    except RunTerminatedError as error:
        raise TransientLoadError(f"the warm-up took longer than {timeout_seconds:g} s") from error
    finally:
        timer.cancel()


def _run(session: Session, first: _FirstRun, outputs: list[str], run: Run) -> bool:
    """Runs once; returns whether the model took the inputs."""
    try:
        session.run(first.inputs, outputs, run)
    except OutOfMemory as error:
        raise TransientLoadError(f"{first.name} failed: {error}") from error
    except RunError as error:
        if not first.guessed:
            raise LoadError(f"{first.name} failed: {error}") from error
        # The sizes are a guess; a model that takes only even lengths is not broken.
        _log.warning("warm-up skipped: the model refuses the smallest shapes", reason=str(error))
        return False
    return True


def _first_runs(
    signature: Signature, settings: ModelSettings, max_batch_size: int
) -> Iterator[_FirstRun]:
    if settings.warmup:
        for sample in settings.warmup:
            inputs = sample_inputs(sample, signature, settings.padding)
            yield _FirstRun(sample_name(sample), inputs, guessed=False, count=sample.count)
        return
    sizes = [spec.shape[1:] if max_batch_size else spec.shape for spec in signature.inputs]
    guessed = any(DYNAMIC in shape for shape in sizes)
    for rows in settings.batch_buckets or (1,):
        inputs = smallest_inputs(signature, rows, settings.padding)
        yield _FirstRun("the warm-up run", inputs, guessed=guessed)
