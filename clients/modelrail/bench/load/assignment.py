"""What one client process shall send."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from modelrail.bench.inputs.request import Payload
from modelrail.bench.plan import BenchPlan, OpenLoop
from modelrail.client.channel import Connection

__all__ = ["Assignment"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """The part of a plan that one client process carries out."""

    connection: Connection
    payloads: Sequence[Payload]
    """Sent in turn."""
    slots: int
    """Most requests in flight; in a closed loop always so many."""
    rate: float | None
    """Requests due in a second; None for a closed loop."""
    seed: tuple[int, ...]
    channels: int
    streams: int
    """0 for unary calls."""
    timeout_seconds: float
    warm_up_seconds: float
    duration_seconds: float | None
    requests: int | None

    @classmethod
    def of(cls, plan: BenchPlan, payloads: Sequence[Payload]) -> list[Self]:
        """Divides a plan among its processes, evenly."""
        n = plan.processes
        whole = cls(
            connection=plan.connection,
            payloads=payloads,
            slots=plan.load.in_flight,
            rate=plan.load.rate / n if isinstance(plan.load, OpenLoop) else None,
            seed=(plan.seed, 1),
            channels=plan.channel_count,
            streams=plan.stream_count,
            timeout_seconds=plan.timeout_seconds,
            warm_up_seconds=plan.warm_up_seconds,
            duration_seconds=plan.duration_seconds,
            requests=plan.requests,
        )
        return [
            replace(
                whole,
                # Each begins elsewhere in the round of payloads.
                payloads=[*payloads[index % len(payloads) :], *payloads[: index % len(payloads)]],
                slots=_part(whole.slots, index, n),
                seed=(*whole.seed, index),
                channels=_part(whole.channels, index, n),
                streams=_part(whole.streams, index, n),
                requests=None if whole.requests is None else _part(whole.requests, index, n),
            )
            for index in range(n)
        ]

    def to_json(self) -> dict[str, Any]:
        """Returns the assignment as JSON."""
        connection = asdict(self.connection)
        return asdict(self) | {
            "connection": {
                name: str(value) if isinstance(value, Path) else value
                for name, value in connection.items()
            },
            "payloads": [
                {"body": base64.b64encode(payload.body).decode(), "items": payload.items}
                for payload in self.payloads
            ],
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Reads what `to_json` returned."""
        connection = dict(content["connection"])
        for name in ("ca_certificate", "certificate", "key"):
            if connection[name] is not None:
                connection[name] = Path(connection[name])
        return cls(
            **{
                **content,
                "connection": Connection(**connection),
                "payloads": [
                    Payload(base64.b64decode(payload["body"]), payload["items"])
                    for payload in content["payloads"]
                ],
                "seed": tuple(content["seed"]),
            }
        )


def _part(whole: int, index: int, parts: int) -> int:
    return whole // parts + (index < whole % parts)
