"""One batch: the requests that run together, and the run itself, in which none can hurt another."""

from __future__ import annotations

import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from modelrail_inference.model.definition import LoadedModel, Runnable
from modelrail_inference.model.signature import TensorSpec
from modelrail_inference.request.assembly import (
    BatchBuffers,
    RowsError,
    assemble,
    take_apart,
)
from modelrail_inference.request.encode import encode
from modelrail_inference.request.feed import Feed
from modelrail_inference.request.message import OutputTensor
from modelrail_inference.runtime.session import Run, RunError
from modelrail_inference.scheduling.queue.queued import QueuedRequest
from modelrail_server.errors import ServiceError

if TYPE_CHECKING:
    from modelrail_inference.scheduling.lane import Lane


@dataclass(slots=True)
class Execution:
    """One run of a session that gave an answer. Nothing changes it once it is made.

    Attributes:
        items: Items in the batch.
        started_ns: When its batch was taken: a moment of `time.perf_counter_ns()`.
        input_ns: Time to assemble it, in nanoseconds.
        infer_ns: Time of the run, in nanoseconds.
        output_ns: Time to take it apart, in nanoseconds.
        cpu_ns: Processor time of the thread that did all of this, in nanoseconds.
        key: What the shapes of its requests have in common.
        output_bytes: What the outputs of all requests take as they travel.
    """

    items: int
    started_ns: int
    input_ns: int
    infer_ns: int
    output_ns: int
    cpu_ns: int
    key: Hashable = ()
    output_bytes: int = 0

    @property
    def seconds(self) -> float:
        """Time of all of it, in seconds."""
        return (self.input_ns + self.infer_ns + self.output_ns) / 1e9


Answer = tuple[tuple[OutputTensor, ...], Execution]
"""What a request gets: the outputs as they travel, and the run that gave them."""


@dataclass(slots=True)
class Outcome:
    """What came of one request: outputs as they travel, or the error. Nothing changes it later.

    It does not hold the request, whose future holds it: both would stay, with all bytes of the
    request, until the garbage collector comes by.
    """

    outputs: tuple[OutputTensor, ...] = ()
    error: BaseException | None = None
    execution: Execution | None = None


class Batch:
    """Requests that run together.

    Args:
        lane: The model.
        requests: At least one; their shapes fit together.
        started_at: When the batch was taken: a moment of `time.monotonic()`.
        stands_in: Whether a thread has it that stands in for one with a long run.
    """

    __slots__ = (
        "items",
        "key",
        "lane",
        "requests",
        "run",
        "stands_in",
        "started_at",
        "started_ns",
        "waiting",
    )

    def __init__(
        self,
        lane: Lane,
        requests: list[QueuedRequest],
        started_at: float,
        *,
        stands_in: bool = False,
    ) -> None:
        self.lane = lane
        self.stands_in = stands_in
        self.requests = requests
        self.key = requests[0].feed.key
        self.items = sum(request.feed.batch_size for request in requests)
        self.started_at = started_at
        self.started_ns = time.perf_counter_ns()
        self.run = Run()
        self.waiting = len(requests)
        """Requests whose callers still wait; at zero the run is stopped."""

    @property
    def is_trial(self) -> bool:
        """Whether one of its requests was let in to show whether a guess is right."""
        return any(request.is_trial for request in self.requests)

    def leave(self) -> None:
        """A caller has gone. When it was the last, what runs is stopped."""
        self.waiting -= 1
        if self.waiting == 0:
            self.run.terminate()


class BatchRunner:
    """Runs one batch on the calling thread.

    A request whose contents cannot be decoded fails alone. When a run of several requests fails,
    halves of it are run again, so that only those fail that fail by themselves; where the outputs
    cannot be told apart, each of them is.

    Args:
        batch: What to run.
        buffers: Where it is put together.
        singly: In place of halves, each request is run again: where none of many is good, those are
            half as many runs.

    Attributes:
        outcomes: Each request with what came of it, in the end.
        executions: The runs that gave answers.
        why_alone: Why the model's requests have to run alone; empty while they need not.
    """

    def __init__(self, batch: Batch, buffers: BatchBuffers, *, singly: bool = False) -> None:
        self._batch = batch
        self._singly = singly
        self._model = batch.lane.model
        self._layout = batch.lane.layout
        self._buffers = buffers
        self.outcomes: list[tuple[QueuedRequest, Outcome]] = []
        self.executions: list[Execution] = []
        self.why_alone = ""

    def run(self) -> None:
        """Runs the batch; whatever goes wrong is in the outcomes."""
        requests = self._batch.requests
        try:
            if len(requests) > 1 or not self._layout.is_whole(requests[0].feed):
                requests = self._decoded(requests)
            if requests:
                self._run(requests)
        except Exception as error:  # noqa: BLE001 - a defect here must not end the calling thread
            answered = {request for request, _ in self.outcomes}
            self.outcomes.extend(
                (request, Outcome(error=error))
                for request in self._batch.requests
                if request not in answered
            )

    def _decoded(self, requests: list[QueuedRequest]) -> list[QueuedRequest]:
        """Decodes what has to be decoded element by element; what cannot be is out."""
        good: list[QueuedRequest] = []
        for request in requests:
            try:
                request.feed.decode()
            except Exception as error:  # noqa: BLE001 - it is the outcome of this request alone
                self.outcomes.append((request, Outcome(error=error)))
            else:
                good.append(request)
        return good

    def _run(self, requests: list[QueuedRequest]) -> None:
        try:
            parts, execution = self._computed([request.feed for request in requests])
        except (RunError, RowsError) as error:
            if isinstance(error, RowsError):
                self.why_alone = str(error)
            if len(requests) == 1:
                self.outcomes.append((requests[0], Outcome(error=error)))
                return
            middle = len(requests) // 2
            halves = [requests[:middle], requests[middle:]]
            singly = self._singly or self.why_alone
            for again in [[one] for one in requests] if singly else halves:
                self._run(again)
        except Exception as error:  # noqa: BLE001 - whoever waits for it gets it
            self.outcomes.extend((request, Outcome(error=error)) for request in requests)
        else:
            self.executions.append(execution)
            for request, part in zip(requests, parts, strict=True):
                if isinstance(part, ServiceError):
                    self.outcomes.append((request, Outcome(error=part)))
                else:
                    self.outcomes.append((request, Outcome(part, execution=execution)))

    def _computed(
        self, feeds: list[Feed]
    ) -> tuple[list[tuple[OutputTensor, ...] | ServiceError], Execution]:
        if len(feeds) == 1 and self._layout.is_whole(feeds[0]):
            part, execution = compute_alone(
                self._model, feeds[0], self._batch.run, self._batch.started_ns
            )
            return [part], execution
        specs = _wanted(feeds)
        cpu_started = time.thread_time_ns()
        started = time.perf_counter_ns()
        inputs = assemble(feeds, self._layout, self._buffers)
        assembled = time.perf_counter_ns()
        arrays = _session_of(self._model).run(inputs, _names(specs), self._batch.run)
        ran = time.perf_counter_ns()
        parts = take_apart(arrays, specs, feeds, self._layout)
        encoded = [
            _encoded(feed, [part[spec.name] for spec in feed.outputs])
            for feed, part in zip(feeds, parts, strict=True)
        ]
        ended = time.perf_counter_ns()
        execution = Execution(
            sum(feed.batch_size for feed in feeds),
            self._batch.started_ns,
            assembled - started,
            ran - assembled,
            ended - ran,
            time.thread_time_ns() - cpu_started,
            feeds[0].key,
            sum(map(_size_bytes, encoded)),
        )
        return encoded, execution


def compute_alone(
    model: LoadedModel, feed: Feed, run: Run, started_ns: int
) -> tuple[tuple[OutputTensor, ...] | ServiceError, Execution]:
    """Runs one request by itself, on the calling thread.

    Its inputs are not copied, and all outputs belong to it, whatever their shape: a detector finds
    what it finds.

    Args:
        model: The model.
        feed: The request; the session sees just its rows.
        run: Stops it.
        started_ns: When it was taken: a moment of `time.perf_counter_ns()`.

    Returns:
        The outputs as they travel, or why they cannot; and the run.

    Raises:
        InvalidArgument: The contents are not what shape and datatype promise.
        RunError: The model cannot compute these inputs.
        RunTerminatedError: `run` was told to stop.
    """
    cpu_started = time.thread_time_ns()
    started = time.perf_counter_ns()
    inputs = feed.arrays()
    prepared = time.perf_counter_ns()
    arrays = _session_of(model).run(inputs, _names(feed.outputs), run)
    ran = time.perf_counter_ns()
    outputs = _encoded(feed, arrays)
    ended = time.perf_counter_ns()
    execution = Execution(
        feed.batch_size,
        started_ns,
        prepared - started,
        ran - prepared,
        ended - ran,
        time.thread_time_ns() - cpu_started,
        feed.key,
        _size_bytes(outputs),
    )
    return outputs, execution


def _session_of(model: LoadedModel) -> Runnable:
    if model.session is None:
        raise AssertionError("a model was freed while a request used it")
    return model.session


def _names(specs: Sequence[TensorSpec]) -> list[str]:
    return [spec.name for spec in specs]


def _encoded(feed: Feed, arrays: Sequence[NDArray[Any]]) -> tuple[OutputTensor, ...] | ServiceError:
    try:
        return encode(feed.outputs, arrays, max_bytes=feed.max_reply_bytes)
    except ServiceError as error:  # a reply that is too large fails alone
        return error


def _size_bytes(outputs: tuple[OutputTensor, ...] | ServiceError) -> int:
    if isinstance(outputs, ServiceError):
        return 0
    return sum([len(output.raw) for output in outputs])


def _wanted(feeds: Sequence[Feed]) -> tuple[TensorSpec, ...]:
    """Returns the outputs that at least one request wants."""
    first = feeds[0].outputs
    if all(feed.outputs is first for feed in feeds):
        return first
    wanted: dict[str, TensorSpec] = {}
    for feed in feeds:
        for spec in feed.outputs:
            wanted.setdefault(spec.name, spec)
    return tuple(wanted.values())
