"""The first runs of a model, before it is ready: those that its configuration names, or a guess.

The first run of each shape plans memory and picks kernels; a model that cannot run at all shows it.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import structlog
from numpy.random import default_rng  # numpy imports it late, and each trial would do it again
from numpy.typing import NDArray

from modelrail.tensor import NUMPY_TYPES, TensorError, from_raw
from modelrail_inference.repository.batching import Padding
from modelrail_inference.repository.definition import LoadError, ModelSettings, TransientLoadError
from modelrail_inference.repository.warmup import WARMUP_FOLDER, Fill, SampleInput, WarmupSample
from modelrail_inference.runtime.session import (
    OutOfMemory,
    Run,
    RunError,
    RunTerminatedError,
    Session,
)
from modelrail_inference.signature import DYNAMIC, Signature, TensorSpec
from modelrail_inference.thread_limit import ThreadLimitReached, start_thread

_log = structlog.get_logger(__name__)

_MAX_STRING_BYTES = 64 << 20
_SEED = 11
_TINY_SECONDS = 0.0001
_TINY_RUNS = 5
"""Tries to be quick: a run can be disturbed."""


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


def is_tiny(
    session: Session, signature: Signature, settings: ModelSettings, *, max_batch_size: int
) -> bool:
    """Whether a run of the first sample, or of the smallest zeros, takes less than 0.1 ms.

    Counted is the processor time of the calling thread, as the machine may be busy; and after the
    warm-up, as a first run takes longer than those that follow.

    Args:
        session: The loaded model, warmed up.
        signature: Its served inputs and outputs, and the mask that the server fills.
        settings: What the configuration says.
        max_batch_size: Largest batch; 0 when the model has no batch dimension.
    """
    outputs = [spec.name for spec in signature.outputs]
    first = next(_first_runs(signature, settings, max_batch_size))
    for _ in range(_TINY_RUNS):
        started = time.thread_time()
        try:
            session.run(first.inputs, outputs, Run())
        except RunError:  # the sizes were a guess
            return False
        seconds = time.thread_time() - started
        if seconds < _TINY_SECONDS or seconds > _TINY_RUNS * _TINY_SECONDS:
            break
    return seconds < _TINY_SECONDS


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
            name = f"the warm-up sample '{sample.name}'"
            inputs = _of_sample(name, sample, signature, settings.padding)
            yield _FirstRun(name, inputs, guessed=False, count=sample.count)
        return
    sizes = [spec.shape[1:] if max_batch_size else spec.shape for spec in signature.inputs]
    guessed = any(DYNAMIC in shape for shape in sizes)
    for rows in settings.batch_buckets or (1,):
        inputs = smallest_inputs(signature, rows, settings.padding)
        yield _FirstRun("the warm-up run", inputs, guessed=guessed)


def smallest_inputs(
    signature: Signature, rows: int, padding: Padding | None
) -> dict[str, NDArray[Any]]:
    """Returns zeros of the smallest sizes that a model may take, by input.

    Args:
        signature: Its inputs, and the mask that the server fills.
        rows: Size of a dynamic first dimension.
        padding: Which inputs have the length of an edge; None when none has.
    """
    return {spec.name: _smallest(spec, rows, padding) for spec in signature.inputs}


def _smallest(spec: TensorSpec, rows: int, padding: Padding | None) -> NDArray[Any]:
    shape = [1 if size == DYNAMIC else size for size in spec.shape]
    if spec.shape[:1] == (DYNAMIC,):
        shape[0] = rows
    if padding is not None:
        padded = padding.inputs.get(spec.name)
        if padded is not None or spec.name == padding.mask:
            shape[padded.axis if padded else 1] = padding.edges[0]
    return _filled(spec.datatype, tuple(shape), Fill.ZERO)


def _of_sample(
    name: str, sample: WarmupSample, signature: Signature, padding: Padding | None
) -> dict[str, NDArray[Any]]:
    mask = padding.mask if padding else None
    specs = {spec.name: spec for spec in signature.inputs}
    visible = [given for given in specs if given != mask]
    if sorted(sample.inputs) != sorted(visible):
        raise LoadError(f"{name}: expected the inputs {visible}, got {sorted(sample.inputs)}")
    inputs = {
        given: _array(f"{name}: input '{given}'", item, sample.batch_size, specs[given])
        for given, item in sample.inputs.items()
    }
    if padding is not None and mask is not None:
        given, padded = next(iter(padding.inputs.items()))
        shape = (sample.batch_size, inputs[given].shape[padded.axis])
        inputs[mask] = np.ones(shape, NUMPY_TYPES[specs[mask].datatype])
    return inputs


def _array(where: str, item: SampleInput, batch_size: int, spec: TensorSpec) -> NDArray[Any]:
    if item.datatype != spec.datatype:
        raise LoadError(f"{where}: expected {spec.datatype}, got {item.datatype}")
    shape = (batch_size, *item.dims) if batch_size else item.dims
    if len(shape) != len(spec.shape) or any(
        expected not in (DYNAMIC, got) for expected, got in zip(spec.shape, shape, strict=True)
    ):
        raise LoadError(f"{where}: expected shape {list(spec.shape)}, got {list(shape)}")
    if isinstance(item.source, Fill):
        return _filled(item.datatype, shape, item.source)
    one = _read(where, item.source, item.datatype, item.dims)
    return np.repeat(one[np.newaxis], batch_size, axis=0) if batch_size else one


def _read(where: str, path: Path, datatype: str, dims: tuple[int, ...]) -> NDArray[Any]:
    shown = f"'{WARMUP_FOLDER}/{path.name}'"
    is_text = datatype == "BYTES"
    limit = math.prod(dims) * NUMPY_TYPES[datatype].itemsize if not is_text else _MAX_STRING_BYTES
    try:
        if not path.is_file():  # a pipe would be waited for
            raise LoadError(f"{where}: {shown} is no file")
        with path.open("rb") as file:
            raw = file.read(limit + 1)
        array = from_raw(raw, datatype, dims)
        if is_text:
            return _decoded(array)
    except OSError as error:
        raise LoadError(f"{where}: {shown} cannot be read") from error
    except (TensorError, UnicodeDecodeError) as error:
        raise LoadError(f"{where}: {shown}: {error}") from error
    return array


def _decoded(array: NDArray[Any]) -> NDArray[Any]:
    texts = np.empty(array.shape, object)
    texts.flat[:] = [element.decode() for element in array.flat]
    return texts


def _filled(datatype: str, shape: tuple[int, ...], fill: Fill) -> NDArray[Any]:
    if datatype == "BYTES":
        text: NDArray[Any] = np.full(shape, "" if fill is Fill.ZERO else "a", dtype=object)
        return text
    dtype = NUMPY_TYPES[datatype]
    if fill is Fill.ZERO:
        return np.zeros(shape, dtype)
    random = default_rng(_SEED)
    if dtype.kind in "biu":  # 0 and 1 are tokens, classes, flags and pixels of every model
        return random.integers(0, 2, shape).astype(dtype)
    return random.normal(size=shape).astype(dtype)
