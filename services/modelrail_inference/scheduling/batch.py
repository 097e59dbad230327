"""One batch: the requests that run together, and the run itself, in which none can hurt another."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from modelrail_inference.encode import encode
from modelrail_inference.message import OutputTensor
from modelrail_inference.request.feed import Feed
from modelrail_inference.runtime.session import Run, RunError
from modelrail_inference.scheduling.assembly import (
    BatchBuffers,
    assemble,
    take_apart,
)
from modelrail_inference.scheduling.queued import QueuedRequest
from modelrail_inference.signature import TensorSpec
from modelrail_server.errors import ServiceError

if TYPE_CHECKING:
    from modelrail_inference.scheduling.lane import Lane


@dataclass(frozen=True, slots=True)
class Execution:
    """One run of a session that gave an answer.

    Attributes:
        items: Items in the batch.
        input_ns: Time to assemble it, in nanoseconds.
        infer_ns: Time of the run, in nanoseconds.
        output_ns: Time to take it apart, in nanoseconds.
    """

    items: int
    input_ns: int
    infer_ns: int
    output_ns: int

    @property
    def seconds(self) -> float:
        """Time of all of it, in seconds."""
        return (self.input_ns + self.infer_ns + self.output_ns) / 1e9


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one request: outputs as they travel, or the error.

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
    """

    __slots__ = ("items", "lane", "requests", "run", "started_at", "started_ns", "waiting")

    def __init__(self, lane: Lane, requests: list[QueuedRequest], started_at: float) -> None:
        self.lane = lane
        self.requests = requests
        self.items = sum(request.feed.batch_size for request in requests)
        self.started_at = started_at
        self.started_ns = time.perf_counter_ns()
        self.run = Run()
        self.waiting = len(requests)
        """Requests whose callers still wait; at zero the run is stopped."""

    def leave(self) -> None:
        """A caller has gone. When it was the last, what runs is stopped."""
        self.waiting -= 1
        if self.waiting == 0:
            self.run.terminate()


class BatchRunner:
    """Runs one batch on the calling thread.

    A request whose contents cannot be decoded fails alone. When a run of several requests fails,
    halves of it are run again, so that only those fail that fail by themselves.

    Args:
        batch: What to run.
        buffers: Where it is put together.

    Attributes:
        outcomes: Each request with what came of it, in the end.
        executions: The runs that gave answers.
    """

    def __init__(self, batch: Batch, buffers: BatchBuffers) -> None:
        self._batch = batch
        self._model = batch.lane.model
        self._layout = batch.lane.layout
        self._buffers = buffers
        self.outcomes: list[tuple[QueuedRequest, Outcome]] = []
        self.executions: list[Execution] = []

    def run(self) -> None:
        """Runs the batch; whatever goes wrong is in the outcomes."""
        requests = self._batch.requests
        if len(requests) > 1 or self._layout.padding is not None:
            requests = self._decoded(requests)
        if requests:
            self._run(requests)

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
        except RunError as error:
            if len(requests) == 1:
                self.outcomes.append((requests[0], Outcome(error=error)))
                return
            middle = len(requests) // 2
            self._run(requests[:middle])
            self._run(requests[middle:])
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
        session = self._model.session
        if session is None:
            raise AssertionError("a model was freed while a request used it")
        specs = _wanted(feeds)
        started = time.perf_counter_ns()
        inputs = assemble(feeds, self._layout, self._buffers)
        assembled = time.perf_counter_ns()
        arrays = session.run(inputs, [spec.name for spec in specs], self._batch.run)
        ran = time.perf_counter_ns()
        parts = take_apart(arrays, specs, feeds, self._layout)
        encoded = [_encoded(feed, part) for feed, part in zip(feeds, parts, strict=True)]
        ended = time.perf_counter_ns()
        items = sum(feed.batch_size for feed in feeds)
        return encoded, Execution(items, assembled - started, ran - assembled, ended - ran)


def _encoded(
    feed: Feed, arrays: dict[str, NDArray[Any]]
) -> tuple[OutputTensor, ...] | ServiceError:
    try:
        return encode(
            feed.outputs,
            [arrays[spec.name] for spec in feed.outputs],
            max_bytes=feed.max_reply_bytes,
        )
    except ServiceError as error:  # a reply that is too large fails alone
        return error


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
