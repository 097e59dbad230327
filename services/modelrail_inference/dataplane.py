"""The data plane: one narrow boundary between whatever transports requests and the sessions.

    transport ▸ bytes ▸ DataPlane.infer ▸ route ▸ check ▸ queue ▸ decode ▸ session ▸ encode ▸ bytes

In go an `InferenceRequest` and a `Call`; out comes an `InferenceReply` or an error. The contract:

- **Message in.** Inputs are raw bytes or typed elements, unchecked. They must not change meanwhile.
- **Admission.** What costs time in proportion to the elements (text, flags, typed numbers, encoding
  text) happens on a thread of the scheduler, after its queue has taken the request in by the memory
  that it will hold. Before that, only names, shapes and sizes are looked at.
- **Where it runs.** On a thread of the scheduler; but a request for a quick model, whose time the
  sizes of its inputs bound, runs on the caller's event loop, and `infer` returns without waiting,
  or on a saturated loop after some milliseconds in which others came to run with it.
- **Deadline.** `Call.deadline` bounds waiting and running together. Work that cannot be done until
  then is refused at once; work whose deadline has passed does not run; a run for which nobody waits
  any more is told to stop.
- **Cancellation.** Cancelling the task that awaits `infer` drops waiting work and stops a run that
  was for this caller alone.
- **Identity.** `Call.identity` is who asks. Permission was checked before; fairness can come here.
- **Message out.** Raw bytes in the order asked for, large ones as views of the outputs of the
  batch: whoever has a reply encodes it soon, and counts it in `UnreadReplies` until its caller has
  taken it. A connection (`Call.peer`) whose callers do not read is answered no more for a while.
- **Errors.** `ServiceError` for everything that a caller can meet; anything else is a defect.

Nothing here knows gRPC or protobuf, so another host (a test in plain Python, later a native front)
drives the same boundary. A front that forms batches itself asks once for each batch: a request of
as many items runs as it came, uncopied, where dynamic batching puts no other beside it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping

import structlog

from modelrail_inference.failures import count_failure, to_service_error, with_request_id
from modelrail_inference.model.definition import LoadedModel
from modelrail_inference.repository.lifecycle import Serving
from modelrail_inference.repository.repository import Repository
from modelrail_inference.request.call import Call
from modelrail_inference.request.feed import Feed
from modelrail_inference.request.message import InferenceReply, InferenceRequest, Parameter
from modelrail_inference.request.parameters import check_parameters
from modelrail_inference.request.unread import UnreadReplies
from modelrail_inference.runtime.session import DeviceError
from modelrail_inference.scheduling.batch import Answer
from modelrail_inference.scheduling.lane import Lane
from modelrail_inference.scheduling.queue.queued import QueuedRequest
from modelrail_inference.scheduling.scheduler import Scheduler
from modelrail_server.errors import ServiceError

_log = structlog.get_logger(__name__)


class DataPlane:
    """Answers requests from the loaded models.

    Args:
        repository: Where the models are.
        scheduler: Where requests wait and run.
        unread: What replies wait to be read; the transport counts them.
        max_reply_bytes: Largest reply that the transport carries.
        on_device_failure: Called once for each model whose device has failed, with its name.
    """

    def __init__(
        self,
        repository: Repository,
        scheduler: Scheduler,
        unread: UnreadReplies,
        *,
        max_reply_bytes: int,
        on_device_failure: Callable[[str], None] = lambda name: None,
    ) -> None:
        self._repository = repository
        self._scheduler = scheduler
        self._unread = unread
        self._max_reply_bytes = max_reply_bytes
        self._on_device_failure = on_device_failure
        self._loop = asyncio.get_running_loop()

    async def infer(self, request: InferenceRequest, call: Call) -> InferenceReply:
        """Answers one request.

        Raises:
            ServiceError: The request is wrong, or cannot be answered now. The message starts with
                `[request id: …] ` when the caller sent an id.
        """
        started = time.perf_counter_ns()
        try:
            serving = self._repository.acquire(request.model, request.version)
        except ServiceError as error:
            raise with_request_id(error, request.id) from None
        statistics = serving.model.statistics
        statistics.in_flight += 1
        queued = None
        try:
            self._unread.check(call.peer)
            lane, feed = self._checked(request, serving)
            came_ns = time.perf_counter_ns()
            answer = self._scheduler.run_at_once(lane, feed, call.deadline)
            if answer is None:
                queued = self._submitted(request, lane, feed, call, serving)
                answer = await self._answer(queued)
            outputs, execution = answer
        except BaseException as error:
            if isinstance(error, DeviceError):
                self._device_failed(serving.model, error)
            error = to_service_error(error, serving.model)
            ran = queued is not None and queued.batch is not None
            elapsed_ns = time.perf_counter_ns() - started
            count_failure(statistics, error, elapsed_ns, call=call, ran=ran)
            if isinstance(error, ServiceError):
                raise with_request_id(error, request.id) from error.__cause__
            raise
        finally:
            statistics.in_flight -= 1
            if queued is not None and queued.batch is not None:
                statistics.taken_and_left_count += 1
            if queued is None:
                serving.release()  # otherwise the scheduler does, once nothing runs for it any more
        statistics.answered(
            feed.batch_size,
            queue_ns=execution.started_ns - came_ns,
            input_ns=execution.input_ns,
            infer_ns=execution.infer_ns,
            output_ns=execution.output_ns,
            total_ns=time.perf_counter_ns() - started,
        )
        return InferenceReply(request.model, serving.model.number, request.id, outputs)

    def instances_of(self, model: LoadedModel) -> int:
        """Returns how many runs of a model there are at a time in this process."""
        return self._scheduler.instances_of(model)

    def _checked(self, request: InferenceRequest, serving: Serving) -> tuple[Lane, Feed]:
        """Returns the place of the model, and the request as the scheduler takes it."""
        lane = serving.lane
        if lane is None:
            lane = serving.lane = self._scheduler.open_lane(serving.model)
        if request.parameters or request.output_parameters or request.input_parameters:
            check_parameters(request)
        feed = lane.checker.check(request)
        feed.max_reply_bytes = self._max_reply_bytes - 4 * len(request.id) - len(request.model)
        return lane, feed

    def _submitted(
        self, request: InferenceRequest, lane: Lane, feed: Feed, call: Call, serving: Serving
    ) -> QueuedRequest:
        """Returns the request as it waits for a session or runs."""
        queued = QueuedRequest(
            lane,
            feed,
            self._loop.create_future(),
            serving.release,
            size_bytes=max(request.size_bytes, feed.padded_bytes),
            deadline=call.deadline,
        )
        _apply_queue_policy(queued, lane, request.parameters)
        self._scheduler.submit(queued)
        return queued

    def _device_failed(self, model: LoadedModel, error: DeviceError) -> None:
        if model.device_failure:
            return  # said already, and it may be every request from now on
        model.device_failure = str(error)
        _log.error(
            "device failed",
            model=model.model,
            version=model.number,
            provider=model.provider.value,
            exc_info=error,
        )
        self._on_device_failure(model.model)

    async def _answer(self, queued: QueuedRequest) -> Answer:
        try:
            outcome = await queued.future
        except asyncio.CancelledError:
            self._scheduler.abandon(queued)
            raise
        if outcome.execution is None:
            raise AssertionError("an answer came from no run")
        return outcome.outputs, outcome.execution


def _apply_queue_policy(
    queued: QueuedRequest, lane: Lane, parameters: Mapping[str, Parameter]
) -> None:
    batching = lane.queue.batching
    if batching.priority_levels:
        queued.level = batching.level_of(int(parameters.get("priority") or 0))
    asked_seconds = int(parameters.get("timeout") or 0) / 1e6
    wait_seconds = batching.policy_of(queued.level).wait_seconds(asked_seconds)
    if wait_seconds:
        queued.wait_until = time.monotonic() + wait_seconds
