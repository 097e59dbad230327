"""Reads how requests of a model wait and are put together from its `config.pbtxt`.

`dynamic_batching` is Triton's. What Triton cannot say stands in two entries of `parameters`, each a
JSON text:

    parameters { key: "padding" value { string_value:
      '{"edges": [16, 32, 64], "inputs": {"input_ids": {"axis": 1, "value": 0}},
        "mask": "attention_mask", "outputs": {"last_hidden_state": 1}}' } }
    parameters { key: "batch_buckets" value { string_value: "[1, 2, 4, 8]" } }

Axes count the batch axis as 0. `mask` and `outputs` can be left out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from modelrail.oip.v2 import model_config_pb2 as pb
from modelrail_inference.model.batching import (
    DynamicBatching,
    PaddedInput,
    Padding,
    QueuePolicy,
    TimeoutAction,
)
from modelrail_inference.protocol.config.field_error import field_error

PADDING: Final = "padding"
BATCH_BUCKETS: Final = "batch_buckets"

_MAX_LEVELS = 64
_MAX_MICROSECONDS = 3_600_000_000
_MAX_EDGES = 256
_MAX_LENGTH = 1 << 24


def read_batching(config: pb.ModelConfig) -> DynamicBatching | None:
    """Reads `dynamic_batching`; None when the configuration has none.

    Raises:
        LoadError: It contradicts itself; the message names the field.
    """
    if not config.HasField("dynamic_batching"):
        return None
    given = config.dynamic_batching
    where = "dynamic_batching"
    if config.max_batch_size < 1:
        raise field_error(
            where, f"expected max_batch_size of at least 1, got {config.max_batch_size}"
        )
    sizes = list(given.preferred_batch_size)
    if any(not 1 <= size <= config.max_batch_size for size in sizes):
        raise field_error(
            f"{where}.preferred_batch_size",
            f"expected sizes between 1 and max_batch_size {config.max_batch_size}, got {sizes}",
        )
    levels = given.priority_levels
    if levels > _MAX_LEVELS:
        raise field_error(
            f"{where}.priority_levels", f"expected at most {_MAX_LEVELS}, got {levels}"
        )
    default = given.default_priority_level
    if levels and not 1 <= default <= levels:
        raise field_error(
            f"{where}.default_priority_level", f"expected 1 to {levels}, got {default}"
        )
    unknown = sorted(level for level in given.priority_queue_policy if not 1 <= level <= levels)
    if unknown:
        raise field_error(
            f"{where}.priority_queue_policy",
            f"expected levels between 1 and {levels}, got {unknown}",
        )
    batching = DynamicBatching(
        preferred_sizes=tuple(sorted(set(sizes))),
        max_queue_delay_seconds=_seconds(
            f"{where}.max_queue_delay_microseconds", given.max_queue_delay_microseconds
        ),
        preserve_ordering=given.preserve_ordering,
        priority_levels=levels,
        default_priority=default or 1,
        policy=_policy(f"{where}.default_queue_policy", given.default_queue_policy),
        level_policies={
            level: _policy(f"{where}.priority_queue_policy[{level}]", policy)
            for level, policy in given.priority_queue_policy.items()
        },
    )
    if batching.preserve_ordering:
        _check_order(where, batching)
    return batching


def write_batching(batching: DynamicBatching) -> pb.ModelDynamicBatching:
    """Writes what is in force, for the RPC ModelConfig."""
    message = pb.ModelDynamicBatching(
        preferred_batch_size=batching.preferred_sizes,
        max_queue_delay_microseconds=round(batching.max_queue_delay_seconds * 1e6),
        preserve_ordering=batching.preserve_ordering,
        priority_levels=batching.priority_levels,
        default_priority_level=batching.default_priority if batching.priority_levels else 0,
        default_queue_policy=_policy_to_pb(batching.policy),
    )
    for level, policy in batching.level_policies.items():
        message.priority_queue_policy[level].CopyFrom(_policy_to_pb(policy))
    return message


def read_padding(text: str, max_batch_size: int) -> Padding | None:
    """Reads the parameter `padding`; None for an empty text.

    Raises:
        LoadError: It is not what is expected; the message names the part.
    """
    if not text:
        return None
    field = f"parameters['{PADDING}']"
    if max_batch_size < 1:
        raise field_error(
            field, "expected max_batch_size of at least 1, as lengths differ in a batch"
        )
    value = _json(field, text)
    if not isinstance(value, dict):
        raise field_error(field, "expected an object")
    if unknown := sorted(set(value) - {"edges", "inputs", "mask", "outputs"}):
        raise field_error(field, f"expected edges, inputs, mask and outputs, got {unknown}")
    mask = value.get("mask")
    if mask is not None and not isinstance(mask, str):
        raise field_error(f"{field}.mask", "expected the name of an input")
    inputs = _object(f"{field}.inputs", value.get("inputs"))
    if not inputs:
        raise field_error(f"{field}.inputs", "expected at least one input")
    return Padding(
        edges=_ascending(f"{field}.edges", value.get("edges"), _MAX_LENGTH),
        inputs={name: _padded(f"{field}.inputs.{name}", item) for name, item in inputs.items()},
        outputs={
            name: _axis(f"{field}.outputs.{name}", axis)
            for name, axis in _object(f"{field}.outputs", value.get("outputs", {})).items()
        },
        mask=mask,
    )


def read_buckets(text: str, max_batch_size: int) -> tuple[int, ...]:
    """Reads the parameter `batch_buckets`; nothing for an empty text.

    Raises:
        LoadError: It is not what is expected.
    """
    if not text:
        return ()
    field = f"parameters['{BATCH_BUCKETS}']"
    buckets = _ascending(field, _json(field, text), max(1, max_batch_size))
    if buckets[-1] != max_batch_size:
        raise field_error(
            field, f"expected max_batch_size {max_batch_size} as the last, got {buckets[-1]}"
        )
    return buckets


def write_padding(padding: Padding) -> str:
    """Writes the parameter `padding` as it is in force, for the RPC ModelConfig."""
    value: dict[str, object] = {
        "edges": padding.edges,
        "inputs": {
            name: {"axis": padded.axis, "value": padded.value}
            for name, padded in padding.inputs.items()
        },
    }
    if padding.mask is not None:
        value["mask"] = padding.mask
    if padding.outputs:
        value["outputs"] = dict(padding.outputs)
    return json.dumps(value)


def write_buckets(buckets: Sequence[int]) -> str:
    """Writes the parameter `batch_buckets` as it is in force, for the RPC ModelConfig."""
    return json.dumps(list(buckets))


def _check_order(where: str, batching: DynamicBatching) -> None:
    """Refuses what would have requests overtaken, as Triton does: all replies would wait for them.

    A request's `timeout` can bring about the action DELAY where the policy has none of its own.
    """
    if batching.priority_levels > 1:
        raise field_error(
            f"{where}.priority_levels",
            f"expected at most 1 with preserve_ordering, got {batching.priority_levels}",
        )
    policies = {f"{where}.default_queue_policy": batching.policy} | {
        f"{where}.priority_queue_policy[{level}]": policy
        for level, policy in batching.level_policies.items()
    }
    for field, policy in policies.items():
        times_out = policy.timeout_seconds > 0 or policy.allow_timeout_override
        if times_out and policy.on_timeout is TimeoutAction.DELAY:
            raise field_error(f"{field}.timeout_action", "expected REJECT with preserve_ordering")


def _policy(field: str, policy: pb.ModelQueuePolicy) -> QueuePolicy:
    return QueuePolicy(
        max_items=policy.max_queue_size,
        timeout_seconds=_seconds(
            f"{field}.default_timeout_microseconds", policy.default_timeout_microseconds
        ),
        on_timeout=TimeoutAction.DELAY
        if policy.timeout_action == pb.ModelQueuePolicy.DELAY
        else TimeoutAction.REJECT,
        allow_timeout_override=policy.allow_timeout_override,
    )


def _policy_to_pb(policy: QueuePolicy) -> pb.ModelQueuePolicy:
    delays = policy.on_timeout is TimeoutAction.DELAY
    return pb.ModelQueuePolicy(
        timeout_action=pb.ModelQueuePolicy.DELAY if delays else pb.ModelQueuePolicy.REJECT,
        default_timeout_microseconds=round(policy.timeout_seconds * 1e6),
        allow_timeout_override=policy.allow_timeout_override,
        max_queue_size=policy.max_items,
    )


def _seconds(field: str, microseconds: int) -> float:
    if microseconds > _MAX_MICROSECONDS:
        raise field_error(field, f"expected at most {_MAX_MICROSECONDS}, got {microseconds}")
    return microseconds / 1e6


def _json(field: str, text: str) -> Any:
    try:
        return json.loads(text, parse_float=_number)
    except ValueError as error:
        raise field_error(field, f"expected JSON: {error}") from None
    except RecursionError:
        raise field_error(field, "expected JSON of a few levels, got countless ones") from None


def _number(text: str) -> float:
    number = float(text)
    if math.isinf(number):  # who means infinity writes `Infinity`
        raise ValueError(f"{text[:40]} is beyond the range of numbers")
    return number


def _object(field: str, value: object) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise field_error(field, "expected an object")
    return value


def _padded(field: str, value: object) -> PaddedInput:
    item = _object(field, value)
    if unknown := sorted(set(item) - {"axis", "value"}):
        raise field_error(field, f"expected axis and value, got {unknown}")
    fill = item.get("value", 0)
    if isinstance(fill, bool) or not isinstance(fill, int | float):
        raise field_error(f"{field}.value", "expected a number")
    return PaddedInput(_axis(f"{field}.axis", item.get("axis", 1)), fill)


def _axis(field: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 64:
        raise field_error(field, "expected the number of an axis, at least 1: 0 is the batch axis")
    return value


def _ascending(field: str, value: object, maximum: int) -> tuple[int, ...]:
    numbers: Sequence[object] = value if isinstance(value, list) else []
    whole = [number for number in numbers if isinstance(number, int) and number is not True]
    in_range = all(1 <= number <= maximum for number in whole)
    if (
        not 1 <= len(numbers) <= _MAX_EDGES
        or len(whole) != len(numbers)
        or not in_range
        or sorted(set(whole)) != whole
    ):
        raise field_error(field, f"expected ascending whole numbers between 1 and {maximum}")
    return tuple(whole)
