"""Questions to all workers and orders for all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from modelrail_server.errors import ServiceError, Unavailable
from modelrail_server.supervision.channel import ChannelClosedError
from modelrail_server.supervision.error_document import InternalFailure, error_document
from modelrail_server.supervision.worker_process import WorkerProcess

__all__ = ["Siblings"]


@dataclass(slots=True, eq=False)
class _Order:
    """What all workers shall do about a subject; callers may share it until it begins."""

    method: str
    task: asyncio.Future[None] = field(init=False)
    begun: bool = False


class Siblings:
    """The workers that are there now. For the event loop's thread only.

    Args:
        followed: Called with the subject and the method of an order when all workers have done it,
            before the next order about the subject begins.

    Attributes:
        workers: By number.
        orders: The last order about each subject, for workers that come later.
    """

    def __init__(self, followed: Callable[[str, str], None] = lambda subject, method: None) -> None:
        self._followed = followed
        self.workers: dict[int, WorkerProcess] = {}
        self.orders: dict[str, str] = {}
        self._last: dict[str, _Order] = {}

    def seat_of(self, worker: WorkerProcess) -> int | None:
        """Returns the number of a worker that is there; None when it has ended.

        By then another one may have its number.
        """
        number = worker.number
        return number if number is not None and self.workers.get(number) is worker else None

    async def ask_all(
        self,
        method: str,
        arguments: Mapping[str, Any],
        *,
        timeout_seconds: float,
        heard: Callable[[WorkerProcess, Mapping[str, Any]], None] = lambda worker, answer: None,
    ) -> list[dict[str, Any]]:
        """Returns the `result` or the `error` of each worker that serves and answers in time.

        Args:
            method: What is asked.
            arguments: Of the question.
            timeout_seconds: Longest wait.
            heard: Called with each answer when it comes: not later, as then a younger one of the
                same worker may have come already.
        """

        async def ask(worker: WorkerProcess) -> dict[str, Any] | None:
            answer = await _ask(worker, method, arguments, timeout_seconds)
            if answer is not None:
                heard(worker, answer)
            return answer

        asked = [worker for worker in self.workers.values() if worker.serving.is_set()]
        answers = await asyncio.gather(*map(ask, asked))
        return [answer for answer in answers if answer is not None]

    async def order(self, subject: str, method: str, *, timeout_seconds: float) -> None:
        """Has every worker do something about a subject, one order about it after the other.

        An order goes on when its caller has left or had no more time. Callers who come again pile
        up nothing: they share the last order, if it is the same and has not begun. One that has
        begun is not theirs: it may have looked at what was there before they came.

        A worker that ends meanwhile is left out: its replacement gets the order at its start.

        Args:
            subject: A model.
            method: What is to be done.
            timeout_seconds: Longest wait.

        Raises:
            ServiceError: The first error of a worker; Unavailable when not all were done in time.
            InternalFailure: A worker failed by a defect.
        """
        last = self._last.get(subject)
        if last is None or last.begun or last.method != method:
            last = self._queue(subject, method)
        done, _ = await asyncio.wait([last.task], timeout=timeout_seconds)
        if not done:
            raise Unavailable(
                f"{method} goes on for '{subject[:80]}': not every worker was done in time",
                reason="WORKER_SLOW",
                retry_after_seconds=1.0,
            )
        last.task.result()

    def _queue(self, subject: str, method: str) -> _Order:
        order = _Order(method)
        order.task = asyncio.create_task(self._follow(subject, order, self._last.get(subject)))
        self._last[subject] = order

        def leave(task: asyncio.Future[None]) -> None:
            if not task.cancelled():
                task.exception()  # told to those who still wait
            if self._last.get(subject) is order:
                del self._last[subject]

        order.task.add_done_callback(leave)
        return order

    async def _follow(self, subject: str, order: _Order, earlier: _Order | None) -> None:
        if earlier is not None:
            await asyncio.wait([earlier.task])
        order.begun = True
        before = self.orders.get(subject)
        # First of all, for workers that come from now on.
        self.orders[subject] = order.method
        workers = list(self.workers.values())
        outcomes = await asyncio.gather(
            *(_order(worker, subject, order.method) for worker in workers), return_exceptions=True
        )
        errors = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        if errors and len(errors) == len(workers):
            self._take_back(subject, before)
        if errors:
            raise _first(errors)
        self._followed(subject, order.method)

    def _take_back(self, subject: str, before: str | None) -> None:
        """Forgets an order that nobody could follow, such as one about an unknown subject."""
        if before is None:
            del self.orders[subject]
        else:
            self.orders[subject] = before


async def _ask(
    worker: WorkerProcess, method: str, arguments: Mapping[str, Any], timeout_seconds: float
) -> dict[str, Any] | None:
    try:
        result = await worker.channel.call(method, arguments, timeout_seconds=timeout_seconds)
    except ServiceError as error:
        return {"error": error_document(error)}
    except InternalFailure as error:
        return {"error": {"message": str(error)}}
    except (TimeoutError, ConnectionError):
        return None
    return {"result": result}


async def _order(worker: WorkerProcess, subject: str, method: str) -> None:
    # However long it takes: a worker does one after the other, and more would only wait there. One
    # that is stuck is ended for its missing heartbeats.
    with suppress(ChannelClosedError):
        await worker.channel.call(method, {"subject": subject}, timeout_seconds=None)


def _first(errors: Sequence[BaseException]) -> BaseException:
    """Returns what the caller is told: an error for callers rather than a defect."""
    return next((error for error in errors if isinstance(error, ServiceError)), errors[0])
