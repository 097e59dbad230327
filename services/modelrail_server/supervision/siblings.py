"""Questions to all workers and orders for all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from weakref import WeakValueDictionary

from modelrail_server.errors import ServiceError, Unavailable
from modelrail_server.supervision.channel import ChannelClosedError
from modelrail_server.supervision.error_document import InternalFailure, error_document
from modelrail_server.supervision.worker_process import WorkerProcess

__all__ = ["Siblings"]


class Siblings:
    """The workers that are there now. For the event loop's thread only.

    Attributes:
        workers: By number.
        orders: The last order about each subject, for workers that come later.
    """

    def __init__(self) -> None:
        self.workers: dict[int, WorkerProcess] = {}
        self.orders: dict[str, str] = {}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

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

        A worker that ends meanwhile is left out: its replacement gets the order at its start.

        Raises:
            ServiceError: The first error of a worker.
            InternalFailure: A worker failed by a defect.
            TimeoutError: Not all were done in time.
        """
        lock = self._locks.setdefault(subject, asyncio.Lock())
        async with asyncio.timeout(timeout_seconds), lock:
            before = self.orders.get(subject)
            # First of all, for workers that come from now on.
            self.orders[subject] = method
            workers = list(self.workers.values())
            outcomes = await asyncio.gather(
                *(_order(worker, subject, method, timeout_seconds) for worker in workers),
                return_exceptions=True,
            )
            errors = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
            if errors and len(errors) == len(workers):
                self._take_back(subject, before)
        if errors:
            raise _first(errors)

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


async def _order(worker: WorkerProcess, subject: str, method: str, timeout_seconds: float) -> None:
    try:
        await worker.channel.call(method, {"subject": subject}, timeout_seconds=timeout_seconds)
    except ChannelClosedError:
        return
    except TimeoutError:
        raise Unavailable(
            f"worker {worker.number} was not done in time", reason="WORKER_SLOW"
        ) from None


def _first(errors: Sequence[BaseException]) -> BaseException:
    """Returns what the caller is told: an error for callers rather than a defect."""
    return next((error for error in errors if isinstance(error, ServiceError)), errors[0])
