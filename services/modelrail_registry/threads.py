"""The threads of the registry, which all run before it serves."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor


def started_threads(count: int, name: str) -> ThreadPoolExecutor:
    """Returns an executor all of whose threads run already.

    `ThreadPoolExecutor.submit` queues the work before it starts a thread. Where the system allows
    no more threads it raises, and the work runs all the same when another thread is free: whoever
    asked for it never learns what it opened. An executor that has its threads never gets there.

    Args:
        count: Number of threads.
        name: What their names begin with.

    Raises:
        RuntimeError: The system does not allow so many threads; none is left behind.
    """
    executor = ThreadPoolExecutor(count, name)
    complete = threading.Event()
    try:
        # Work that waits keeps its thread, so each piece of it needs one more.
        for _ in range(count):
            executor.submit(complete.wait)
    except RuntimeError as error:
        complete.set()
        executor.shutdown()
        raise RuntimeError(
            f"the system does not allow {count} threads for the {name}; raise its limit, or ask "
            "for fewer"
        ) from error
    complete.set()
    return executor
