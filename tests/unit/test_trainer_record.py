"""What another process wrote, read field by field."""

from __future__ import annotations

from enum import StrEnum

import pytest

from modelrail_trainer.handover.record import RecordError, member, nested, nested_if_any, text


class Fruit(StrEnum):
    APPLE = "apple"
    PEAR = "pear"


def test_a_name_is_read_as_the_member_that_has_it() -> None:
    assert member({"fruit": "pear"}, "fruit", Fruit) is Fruit.PEAR


@pytest.mark.parametrize(
    ("record", "told"),
    [
        ({"fruit": "plum"}, "fruit: expected one of apple, pear, got 'plum'"),
        ({"fruit": "p" * 10_000}, f"fruit: expected one of apple, pear, got '{'p' * 80}'"),
        ({"fruit": 1}, "fruit: expected a string, got int"),
        ({}, "fruit: expected a string, got nothing"),
    ],
)
def test_what_names_no_member_is_told_with_its_field_and_what_there_is(
    record: dict[str, object], told: str
) -> None:
    with pytest.raises(RecordError) as caught:
        member(record, "fruit", Fruit)
    assert str(caught.value) == told


def test_an_object_that_may_be_left_out_is_none_where_it_is() -> None:
    def read(record: object) -> str:
        return text(nested({"inner": record}, "inner"), "name")

    assert nested_if_any({"inner": {"name": "x"}}, "inner", read) == "x"
    assert nested_if_any({"inner": None}, "inner", read) is None
    assert nested_if_any({}, "inner", read) is None


def test_an_object_that_must_be_there_is_told_with_its_field() -> None:
    with pytest.raises(RecordError, match="inner: expected an object, got list"):
        nested({"inner": []}, "inner")
    with pytest.raises(RecordError, match="inner: expected an object, got NoneType"):
        nested({}, "inner")
    with pytest.raises(RecordError, match="name: expected a string"):
        nested_if_any({"inner": {"name": 3}}, "inner", lambda inner: text(inner, "name"))
