"""Threads that load models, and what happens when one of them does not come back."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass

import structlog

from modelrail_inference.model.definition import LoadedModel, TransientLoadError
from modelrail_inference.threads.limit import ThreadLimitReached, start_thread
from modelrail_inference.threads.niceness import give_way

_log = structlog.get_logger(__name__)

THREAD_NAME = "load"


@dataclass(slots=True, eq=False)
class _Load:
    """One load: who waits for it, and whether it took too long."""

    key: Hashable
    result: asyncio.Future[LoadedModel]
    overdue: asyncio.TimerHandle | None = None
    abandoned: bool = False


class LoadThreads:
    """Runs a few loads at a time, and gives up on one that takes too long.

    No thread of a process can be killed from outside: a load that hangs in native code goes on
    until it ends or the process does. So an overdue load is abandoned: its version is reported as
    failed, its place goes to the next load, and what it returns one day is thrown away. As many
    loads as run at a time may be abandoned; after that further ones are refused, because each
    holds memory, and only a restart helps. What was abandoned is not loaded a second time while
    the first load still runs, so trying again costs nothing. The threads are daemons, so they hold
    up no exit.

    A load that crashes the process (a fault in native code) takes it along; nothing in the same
    process can prevent that.

    Args:
        threads: Loads at a time.
        timeout_seconds: Longest load, not counting the wait for its turn.
    """

    def __init__(self, *, threads: int, timeout_seconds: float) -> None:
        self._limit = threads
        self._timeout_seconds = timeout_seconds
        self._turns = asyncio.Semaphore(threads)
        self._running: set[_Load] = set()
        self._abandoned: list[Hashable] = []
        self._idle = asyncio.Event()
        self._idle.set()

    async def run(self, load: Callable[[], LoadedModel], *, key: Hashable) -> LoadedModel:
        """Waits for a turn and loads.

        Args:
            load: Loads; called on a thread.
            key: What is loaded.

        Raises:
            LoadError: The load failed.
            TransientLoadError: It took too long, too many never came back, or the system allows no
                thread.
        """
        if key in self._abandoned:
            raise TransientLoadError(
                f"a load that took longer than {self._timeout_seconds:g} s still runs; it was "
                "abandoned, but its thread cannot be stopped"
            )
        await self._turns.acquire()
        if len(self._abandoned) >= self._limit:
            self._turns.release()
            raise TransientLoadError(
                f"{len(self._abandoned)} earlier loads have not ended within "
                f"{self._timeout_seconds:g} s each and still run; restart the service"
            )
        loop = asyncio.get_running_loop()
        entry = _Load(key, loop.create_future())
        entry.overdue = loop.call_later(self._timeout_seconds, self._abandon, entry)
        self._running.add(entry)
        self._idle.clear()
        thread = threading.Thread(
            target=self._work, args=(entry, load, loop), name=THREAD_NAME, daemon=True
        )
        try:
            start_thread(thread)
        except ThreadLimitReached as error:
            entry.overdue.cancel()
            self._leave(entry)
            raise TransientLoadError(str(error.strerror)) from error
        # A caller that leaves does not free the turn: the thread works on.
        return await entry.result

    async def close(self) -> None:
        """Waits for loads that run, so that the interpreter does not end under them."""
        await self._idle.wait()

    def _work(
        self, entry: _Load, load: Callable[[], LoadedModel], loop: asyncio.AbstractEventLoop
    ) -> None:
        loaded: LoadedModel | None = None
        failure: Exception | None = None
        give_way()  # so do the threads of the session, which are started here
        try:
            loaded = load()
        except Exception as error:  # noqa: BLE001 - whoever waits for the load gets it
            failure = error
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(self._ended, entry, loaded, failure)

    def _ended(self, entry: _Load, loaded: LoadedModel | None, failure: Exception | None) -> None:
        if entry.overdue is not None:
            entry.overdue.cancel()
        if entry.abandoned:
            self._abandoned.remove(entry.key)
            _log.info("an abandoned load has ended", still_running=len(self._abandoned))
        else:
            self._leave(entry)
        if not entry.result.done():
            if loaded is not None:
                entry.result.set_result(loaded)
            else:
                entry.result.set_exception(failure or TransientLoadError("nothing was loaded"))
        elif loaded is not None:
            loaded.close()

    def _abandon(self, entry: _Load) -> None:
        entry.abandoned = True
        self._abandoned.append(entry.key)
        self._leave(entry)
        if not entry.result.done():
            entry.result.set_exception(
                TransientLoadError(
                    f"loading and warming up took longer than {self._timeout_seconds:g} s; the "
                    "load was abandoned, but its thread cannot be stopped"
                )
            )

    def _leave(self, entry: _Load) -> None:
        self._turns.release()
        self._running.discard(entry)
        if not self._running:
            self._idle.set()
