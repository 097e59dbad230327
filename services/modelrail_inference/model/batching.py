"""How requests of one model wait, and how they are put together: what a configuration can say."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field


class TimeoutAction(enum.Enum):
    """What happens to a request that has waited longer than its queue policy allows."""

    REJECT = "reject"
    DELAY = "delay"


@dataclass(frozen=True, slots=True)
class QueuePolicy:
    """How requests of one priority wait (Triton's `ModelQueuePolicy`).

    Attributes:
        max_items: Requests that may wait; 0 for as many as the server lets wait.
        timeout_seconds: Longest wait; 0 for as long as it takes.
        on_timeout: What happens after that.
        allow_timeout_override: Whether a request's parameter `timeout` shortens the wait.
    """

    max_items: int = 0
    timeout_seconds: float = 0.0
    on_timeout: TimeoutAction = TimeoutAction.REJECT
    allow_timeout_override: bool = False

    def wait_seconds(self, asked_seconds: float) -> float:
        """Returns the longest wait of a request that asked for `asked_seconds`; 0 means any."""
        if asked_seconds <= 0 or not self.allow_timeout_override:
            return self.timeout_seconds
        return min(asked_seconds, self.timeout_seconds or asked_seconds)


@dataclass(frozen=True, slots=True)
class DynamicBatching:
    """How requests are put together (Triton's `ModelDynamicBatching`).

    Attributes:
        preferred_sizes: Numbers of items at which a batch runs at once, ascending; empty for the
            largest batch only.
        max_queue_delay_seconds: How long the oldest request waits for others although a session is
            free; shorter where a deadline or timeout is near.
        preserve_ordering: Whether replies leave in the order of the requests. Refusals and expired
            deadlines do not wait for their turn.
        priority_levels: Number of priorities, of which 1 is the highest; 0 when there are none.
        default_priority: Priority of requests that name none, or one that there is not.
        policy: Queue policy of priorities that have none of their own.
        level_policies: Queue policies by priority.
    """

    preferred_sizes: tuple[int, ...] = ()
    max_queue_delay_seconds: float = 0.0
    preserve_ordering: bool = False
    priority_levels: int = 0
    default_priority: int = 1
    policy: QueuePolicy = QueuePolicy(allow_timeout_override=True)
    level_policies: Mapping[int, QueuePolicy] = field(default_factory=dict)

    def level_of(self, priority: int) -> int:
        """Returns the level of a request's priority, as Triton maps it."""
        return priority if 1 <= priority <= self.priority_levels else self.default_priority

    def policy_of(self, level: int) -> QueuePolicy:
        """Returns the queue policy of a level."""
        return self.level_policies.get(level, self.policy)


@dataclass(frozen=True, slots=True)
class PaddedInput:
    """One input whose requests may have different lengths.

    Attributes:
        axis: Axis of the length, counted with the batch axis, so at least 1.
        value: What fills up the shorter ones.
    """

    axis: int
    value: float = 0.0


@dataclass(frozen=True, slots=True)
class Padding:
    """How requests of different lengths get into one batch.

    A request of length n is padded to the smallest edge that is not less than n; only requests of
    one edge share a batch, so that shapes stay few. All padded inputs of a request have the same
    length.

    Attributes:
        edges: Lengths that the model sees, ascending.
        inputs: The padded inputs, by name.
        outputs: Axis of the length of outputs that are cut back to the request's length, by name.
        mask: Name of an input that callers do not send: the server fills it with 1 for elements of
            the request and 0 for padding, in the shape [batch, length]; None without one.
    """

    edges: tuple[int, ...]
    inputs: Mapping[str, PaddedInput]
    outputs: Mapping[str, int] = field(default_factory=dict)
    mask: str | None = None

    def edge_of(self, length: int) -> int | None:
        """Returns the padded length; None when the request is longer than all edges."""
        return next((edge for edge in self.edges if edge >= length), None)
