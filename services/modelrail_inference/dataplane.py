"""The data plane: one narrow boundary between whatever transports requests and the sessions.

    transport ▸ bytes ▸ DataPlane.infer ▸ route ▸ check ▸ queue ▸ decode ▸ session ▸ encode ▸ bytes

In go an `InferenceRequest` and a `Call`; out comes an `InferenceReply` or an error. The contract:

- **Message in.** Inputs are raw bytes or typed elements, unchecked. They must not change meanwhile.
- **Admission.** What costs time in proportion to the elements (text, typed numbers, encoding the
  outputs) happens on a thread of the queue, after the queue has taken the request in by the memory
  that it will hold. Before that, only names, shapes and sizes are looked at.
- **Deadline.** `Call.deadline` bounds waiting and running together. Work whose deadline has passed
  does not run; work that runs is told to stop.
- **Cancellation.** Cancelling the task that awaits `infer` drops waiting work and stops running
  work.
- **Identity.** `Call.identity` is who asks. Permission was checked before; fairness can come here.
- **Message out.** Raw bytes in the order asked for. Nothing is shared with another request.
- **Errors.** `ServiceError` for everything that a caller can meet; anything else is a defect.

Nothing here knows gRPC or protobuf, so another host (a test in plain Python, later a native front
that forms batches itself) drives the same boundary. Dynamic batching takes the place of `RunQueue`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from modelrail_inference.call import Call
from modelrail_inference.decode import Feed, check, check_parameters
from modelrail_inference.encode import encode
from modelrail_inference.message import InferenceReply, InferenceRequest, OutputTensor
from modelrail_inference.repository.definition import LoadedModel
from modelrail_inference.repository.repository import Repository
from modelrail_inference.runtime.session import OutOfMemory, Run, RunError, RunTerminatedError
from modelrail_inference.scheduling import RunQueue, Work
from modelrail_inference.statistics import Failure, Statistics, Timing
from modelrail_server.errors import (
    InvalidArgument,
    ResourceExhausted,
    ServiceError,
    Unavailable,
)


@dataclass(frozen=True, slots=True)
class _Computed:
    outputs: tuple[OutputTensor, ...]
    input_ns: int
    infer_ns: int
    output_ns: int


class DataPlane:
    """Answers requests from the loaded models.

    Args:
        repository: Where the models are.
        queue: What bounds the work.
        max_reply_bytes: Largest reply that the transport carries.
    """

    def __init__(self, repository: Repository, queue: RunQueue, *, max_reply_bytes: int) -> None:
        self._repository = repository
        self._queue = queue
        self._max_reply_bytes = max_reply_bytes

    async def infer(self, request: InferenceRequest, call: Call) -> InferenceReply:
        """Answers one request.

        Raises:
            ServiceError: The request is wrong, or cannot be answered now. The message starts with
                `[request id: …] ` when the caller sent an id.
        """
        with naming(request.id):
            serving = self._repository.acquire(request.model, request.version)
            model = serving.model
            with _counting(model.statistics):
                started = time.perf_counter_ns()
                try:
                    check_parameters(request)
                    feed = check(request, model)
                except BaseException:
                    serving.release()
                    raise
                check_ns = time.perf_counter_ns() - started
                run = Run()
                limit = self._max_reply_bytes - len(request.id.encode()) - len(request.model)
                work = Work(
                    run=lambda: _compute(model, feed, run, limit),
                    terminate=run.terminate,
                    release=serving.release,
                    size_bytes=request.size_bytes,
                )
                computed, queue_ns = await self._run(work, call, model)
                ended = time.perf_counter_ns()
            model.statistics.answered(
                feed.batch_size,
                Timing(
                    queue_ns=queue_ns,
                    input_ns=check_ns + computed.input_ns,
                    infer_ns=computed.infer_ns,
                    output_ns=computed.output_ns,
                    total_ns=ended - started,
                ),
            )
            return InferenceReply(request.model, model.number, request.id, computed.outputs)

    async def _run(
        self, work: Work[_Computed], call: Call, model: LoadedModel
    ) -> tuple[_Computed, int]:
        try:
            return await self._queue.run(work, call)
        except OutOfMemory as error:
            raise ResourceExhausted(
                f"model '{model.model}': {error}", reason="OUT_OF_MEMORY"
            ) from error
        except RunError as error:
            raise InvalidArgument(
                f"model '{model.model}' could not compute these inputs: {error}",
                reason="MODEL_RUN_FAILED",
            ) from error
        except RunTerminatedError as error:
            raise Unavailable("Request timeout expired", reason="REQUEST_TIMEOUT") from error


def _compute(model: LoadedModel, feed: Feed, run: Run, max_reply_bytes: int) -> _Computed:
    """Runs on a thread of the queue."""
    started = time.perf_counter_ns()
    if model.session is None:
        raise AssertionError("a model was freed while a request used it")
    inputs = feed.arrays()
    decoded = time.perf_counter_ns()
    arrays = model.session.run(inputs, [spec.name for spec in feed.outputs], run)
    computed = time.perf_counter_ns()
    outputs = encode(feed.outputs, arrays, max_bytes=max_reply_bytes)
    encoded = time.perf_counter_ns()
    return _Computed(outputs, decoded - started, computed - decoded, encoded - computed)


@contextmanager
def naming(request_id: str) -> Iterator[None]:
    """Puts the caller's request id in front of error messages, as Triton does."""
    try:
        yield
    except ServiceError as error:
        if request_id:
            error.message = f"[request id: {request_id[:200]}] {error.message}"
            error.args = (error.message,)
        raise


@contextmanager
def _counting(statistics: Statistics) -> Iterator[None]:
    """Counts a request as pending, and as failed when it is not answered."""
    started = time.perf_counter_ns()
    statistics.pending += 1
    try:
        yield
    except BaseException as error:
        statistics.failed(_reason(error), time.perf_counter_ns() - started)
        raise
    finally:
        statistics.pending -= 1


def _reason(error: BaseException) -> Failure:
    if isinstance(error, asyncio.CancelledError):
        return Failure.CANCELED
    if isinstance(error, Unavailable):
        return Failure.REJECTED
    if isinstance(error, ServiceError) and error.reason in ("MODEL_RUN_FAILED", "OUT_OF_MEMORY"):
        return Failure.BACKEND
    return Failure.OTHER
