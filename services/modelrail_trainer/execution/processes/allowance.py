"""How much of what a job tells its history keeps: log lines and figures, bounded.

What a job prints has a bound of its own (`output.py`). This one is for what comes through its
journal, which code of the job's owner may write as well, and which may be gigabytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict

from modelrail_trainer.jobs.job import Happening, LogLine, StateChange

MOST_EVENTS = 100_000
"""Log lines and reports of figures of `EVENT_BYTES`, of all attempts of a job together."""
EVENT_BYTES = 1024
"""What one takes at least. Longer ones take what they are long, so there are fewer of them."""


def within_allowance(
    happenings: Iterable[Happening], spent_bytes: int
) -> tuple[list[Happening], int]:
    """Returns what is kept, and what it takes together with all that was kept before.

    Changes of the state are always kept, and take nothing. The last line that is kept says that
    others are not.

    Args:
        happenings: What a process told, in its order.
        spent_bytes: As it was returned before; 0 at first.
    """
    most_bytes = MOST_EVENTS * EVENT_BYTES
    kept: list[Happening] = []
    for happening in happenings:
        if isinstance(happening, StateChange):
            kept.append(happening)
        elif spent_bytes < most_bytes:
            spent_bytes += max(EVENT_BYTES, len(json.dumps(asdict(happening))))
            if spent_bytes < most_bytes:
                kept.append(happening)
            else:
                kept.append(LogLine(_left_out()))
                spent_bytes = most_bytes
    return kept, spent_bytes


def _left_out() -> str:
    return (
        f"the job told more log lines and figures than its history keeps, which is {MOST_EVENTS} "
        f"of {EVENT_BYTES // 1024} KiB; those that it tells from here on are left out"
    )
