"""How large a batch is when all callers of a model are shared evenly among its batches."""

from __future__ import annotations

from collections.abc import Callable

from modelrail_inference.scheduling.run_time import RunTime

_SPARE_SHARES = 2
_WORTH = 1.05
"""What an item may cost more where no session waits: less than learned times differ by chance."""


class UnderWay:
    """Items that wait or run, and those whose callers were answered a moment ago and ask again.

    They are counted as the most that waited and ran at a time lately: right before a batch ends,
    whoever was answered before has come back.

    Args:
        instances: Batches that run at a time.
    """

    __slots__ = ("_before_rows", "_ended", "_instances", "_rows")

    def __init__(self, instances: int) -> None:
        self._instances = instances
        self._rows = 0
        self._before_rows = 0
        self._ended = 0

    def came(self, rows: int) -> None:
        """Another request waits.

        Args:
            rows: Items that wait and run now.
        """
        self._rows = max(self._rows, rows)

    def ended(self, rows: int) -> None:
        """A batch has ended. After one of each session the callers before them count no more."""
        self._ended += 1
        if self._ended >= self._instances:
            self._ended = 0
            self._before_rows, self._rows = self._rows, rows

    def rows(self, rows: int) -> int:
        """Returns how many there are, at least those that wait and run now."""
        return max(rows, self._rows, self._before_rows)


def even_share(
    under_way: int,
    most_rows: int,
    *,
    instances: int,
    run_time: RunTime,
    wait_seconds: Callable[[float], float],
) -> int:
    """Returns the items of one batch when all that are under way are shared evenly.

    A batch of everything that waits would leave the other sessions idle. With as many shares as
    sessions, each waits for all the callers that it has answered; with one more, for the last of
    them at most; with two more, for none, and batches stay of one size, so that nobody waits much
    longer than others. That is worth it where smaller batches take hardly longer for an item, as on
    a CPU.

    Args:
        under_way: Items that wait, run, or come again.
        most_rows: Items of the largest batch.
        instances: Batches that run at a time.
        run_time: What a batch takes.
        wait_seconds: Tells how long a session waits for the callers of a run of so many seconds.
    """
    shares = [
        min(most_rows, -(-under_way // (instances + spare))) for spare in range(_SPARE_SHARES + 1)
    ]
    # As long as all batches were of one size, nobody knows what others take: the largest tells.
    if not run_time.has_varied():
        return shares[0]
    times = [run_time.seconds(rows) for rows in shares]
    costs = [
        (seconds + wait_seconds(seconds) * (1 - spare / _SPARE_SHARES)) / rows
        for spare, (rows, seconds) in enumerate(zip(shares, times, strict=True))
    ]
    bound = _WORTH * min(costs)
    return next(rows for rows, cost in zip(shares[::-1], costs[::-1], strict=True) if cost <= bound)
