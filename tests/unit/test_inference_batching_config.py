"""What a configuration says about batches, queues and lengths."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from modelrail.oip.v2 import model_config_pb2 as pb
from modelrail_inference.model.batching import (
    DynamicBatching,
    PaddedInput,
    Padding,
    QueuePolicy,
    TimeoutAction,
)
from modelrail_inference.model.definition import LoadError, ModelSettings
from modelrail_inference.protocol.config.batching import (
    read_buckets,
    read_padding,
    write_batching,
    write_buckets,
    write_padding,
)
from modelrail_inference.protocol.config.model_config import read_settings

FULL = """
max_batch_size: 16
dynamic_batching {
  preferred_batch_size: [ 8, 4 ]
  max_queue_delay_microseconds: 1500
  priority_levels: 3
  default_priority_level: 2
  default_queue_policy { max_queue_size: 7 timeout_action: DELAY }
  priority_queue_policy {
    key: 1
    value { default_timeout_microseconds: 2000000 allow_timeout_override: true }
  }
}
"""


def read(tmp_path: Path, text: str) -> ModelSettings:
    (tmp_path / "config.pbtxt").write_text(text)
    return read_settings(tmp_path / "config.pbtxt", "m")


def test_dynamic_batching_is_read_and_shown_as_it_was_written(tmp_path: Path) -> None:
    batching = read(tmp_path, FULL).batching
    assert batching == DynamicBatching(
        preferred_sizes=(4, 8),
        max_queue_delay_seconds=0.0015,
        priority_levels=3,
        default_priority=2,
        policy=QueuePolicy(max_items=7, on_timeout=TimeoutAction.DELAY),
        level_policies={1: QueuePolicy(timeout_seconds=2.0, allow_timeout_override=True)},
    )
    shown = write_batching(batching)
    assert shown.preferred_batch_size == [4, 8]
    assert shown.max_queue_delay_microseconds == 1500
    assert shown.default_queue_policy.timeout_action == pb.ModelQueuePolicy.DELAY
    assert shown.priority_queue_policy[1].default_timeout_microseconds == 2_000_000


def test_an_empty_dynamic_batching_turns_it_on(tmp_path: Path) -> None:
    assert read(tmp_path, "max_batch_size: 4 dynamic_batching { }").batching is not None
    assert read(tmp_path, "max_batch_size: 4").batching is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dynamic_batching { }", "dynamic_batching: expected max_batch_size of at least 1, got 0"),
        (
            "max_batch_size: 4 dynamic_batching { preferred_batch_size: 5 }",
            r"preferred_batch_size: expected sizes between 1 and max_batch_size 4, got \[5\]",
        ),
        (
            "max_batch_size: 4 dynamic_batching { priority_levels: 2 }",
            "default_priority_level: expected 1 to 2, got 0",
        ),
        (
            "max_batch_size: 4 dynamic_batching { priority_levels: 65 default_priority_level: 1 }",
            "priority_levels: expected at most 64, got 65",
        ),
        (
            "max_batch_size: 4 dynamic_batching { priority_queue_policy { key: 1 value { } } }",
            r"priority_queue_policy: expected levels between 1 and 0, got \[1\]",
        ),
        (
            "max_batch_size: 4 dynamic_batching { max_queue_delay_microseconds: 3600000001 }",
            "max_queue_delay_microseconds: expected at most 3600000000",
        ),
    ],
)
def test_batching_that_contradicts_itself_is_refused_by_field(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(LoadError, match=message):
        read(tmp_path, text)


def ordered(fields: str) -> str:
    return f"max_batch_size: 4 dynamic_batching {{ preserve_ordering: true {fields} }}"


def test_the_order_can_be_preserved_with_one_priority_and_a_timeout_that_rejects(
    tmp_path: Path,
) -> None:
    text = ordered(
        "priority_levels: 1 default_priority_level: 1 max_queue_delay_microseconds: 100 "
        "default_queue_policy { default_timeout_microseconds: 1 }"
    )
    batching = read(tmp_path, text).batching
    assert batching is not None
    assert batching.preserve_ordering
    assert write_batching(batching).preserve_ordering


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            "priority_levels: 2 default_priority_level: 1",
            "priority_levels: expected at most 1 with preserve_ordering, got 2",
        ),
        (
            "default_queue_policy { timeout_action: DELAY default_timeout_microseconds: 1 }",
            "default_queue_policy.timeout_action: expected REJECT with preserve_ordering",
        ),
        (
            "default_queue_policy { timeout_action: DELAY allow_timeout_override: true }",
            "default_queue_policy.timeout_action: expected REJECT with preserve_ordering",
        ),
        (
            """priority_levels: 1 default_priority_level: 1 priority_queue_policy {
              key: 1 value { timeout_action: DELAY default_timeout_microseconds: 1 }
            }""",
            r"priority_queue_policy\[1\].timeout_action: expected REJECT with preserve_ordering",
        ),
    ],
)
def test_an_order_that_cannot_be_preserved_is_refused_by_field(
    tmp_path: Path, fields: str, message: str
) -> None:
    with pytest.raises(LoadError, match=f"dynamic_batching.{message}"):
        read(tmp_path, ordered(fields))


def parameter(key: str, value: str) -> str:
    return f"max_batch_size: 8 parameters {{ key: '{key}' value {{ string_value: '{value}' }} }}"


def test_padding_is_read(tmp_path: Path) -> None:
    text = parameter(
        "padding",
        '{"edges": [8, 16], "inputs": {"ids": {"axis": 1, "value": 3}}, "mask": "mask", '
        '"outputs": {"hidden": 1}}',
    )
    assert read(tmp_path, text).padding == Padding(
        edges=(8, 16), inputs={"ids": PaddedInput(1, 3)}, outputs={"hidden": 1}, mask="mask"
    )


def test_batch_buckets_are_read(tmp_path: Path) -> None:
    assert read(tmp_path, parameter("batch_buckets", "[1, 4, 8]")).batch_buckets == (1, 4, 8)


@pytest.mark.parametrize(
    "padding",
    [
        Padding((8,), {"ids": PaddedInput(1, 0)}),
        Padding(
            edges=(8, 16),
            inputs={"ž\n'": PaddedInput(1, 2**63 - 1), 'a"\\': PaddedInput(2, -math.inf)},
            outputs={"hidden": 1},
            mask="mask",
        ),
    ],
)
def test_padding_is_written_as_it_is_read(padding: Padding) -> None:
    assert read_padding(write_padding(padding), 8) == padding


def test_batch_buckets_are_written_as_they_are_read() -> None:
    assert read_buckets(write_buckets((1, 4, 8)), 8) == (1, 4, 8)


@pytest.mark.parametrize("provider", ["cuda", "tensorrt", "gpu"])
@pytest.mark.parametrize("group", ["", "instance_group { kind: KIND_CPU }"])
def test_a_provider_that_the_instance_group_does_not_ask_for_is_refused(
    tmp_path: Path, provider: str, group: str
) -> None:
    with pytest.raises(LoadError, match=r"parameters\['execution_provider'\].*got '" + provider):
        read(tmp_path, parameter("execution_provider", provider) + group)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("padding", "{", "expected JSON"),
        ("padding", "[]", "expected an object"),
        ("padding", "[" * 60_000, "expected JSON of a few levels"),
        ("batch_buckets", '{"a":' * 60_000, "expected JSON of a few levels"),
        ("padding", '{"edges": [4], "inputs": {}}', "expected at least one input"),
        ("padding", '{"edges": [4, 2], "inputs": {"x": {}}}', "edges: expected ascending"),
        ("padding", '{"edges": [true], "inputs": {"x": {}}}', "edges: expected ascending"),
        ("padding", '{"edges": [4], "inputs": {"x": {"axis": 0}}}', "expected the number of an"),
        ("padding", '{"edges": [4], "inputs": {"x": {"value": "a"}}}', "value: expected a number"),
        (
            "padding",
            '{"edges": [4], "inputs": {"x": {"value": 1e999}}}',
            "1e999 is beyond the range",
        ),
        ("padding", '{"edges": [4], "inputs": {"x": {"pad": 1}}}', r"got \['pad'\]"),
        ("padding", '{"edges": [4], "inputs": {"x": {}}, "more": 1}', r"got \['more'\]"),
        ("padding", '{"edges": [4], "inputs": {"x": {}}, "mask": 1}', "mask: expected the name"),
        ("batch_buckets", "[1, 4]", "expected max_batch_size 8 as the last, got 4"),
        ("batch_buckets", "[]", "expected ascending whole numbers between 1 and 8"),
        ("batch_buckets", "[16]", "expected ascending whole numbers between 1 and 8"),
    ],
)
def test_padding_and_buckets_that_make_no_sense_are_refused_by_field(
    tmp_path: Path, key: str, value: str, message: str
) -> None:
    with pytest.raises(LoadError, match=message) as refused:
        read(tmp_path, parameter(key, value))
    assert f"parameters['{key}']" in str(refused.value)
