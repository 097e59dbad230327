"""What another process wrote, read field by field."""

from __future__ import annotations

from enum import StrEnum

import pytest

from modelrail_trainer.handover.record import (
    RecordError,
    count,
    items,
    member,
    nested,
    nested_if_any,
    real,
    text,
    texts,
    values,
    whole,
)


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


@pytest.mark.parametrize("value", ["\ud800", "a\udfffb"])
def test_half_a_surrogate_pair_is_no_text(value: str) -> None:
    told = "expected a text of whole characters"
    with pytest.raises(RecordError, match=f"^name: {told}"):
        text({"name": value}, "name")
    with pytest.raises(RecordError, match=rf"^names\[1\]: {told}"):
        values({"names": ["a", value]}, "names", str)
    with pytest.raises(RecordError, match=f"^tools: {told}"):
        texts({"tools": {value: "1"}}, "tools")


def test_a_text_has_a_greatest_length() -> None:
    assert text({"name": "ü" * 200}, "name", most=200) == "ü" * 200
    with pytest.raises(RecordError, match=r"^name: expected at most 200 characters, got 201$"):
        text({"name": "x" * 201}, "name", most=200)
    with pytest.raises(RecordError, match=r"^name: expected at most"):
        text({"name": "x" * (1 << 20)}, "name")
    with pytest.raises(RecordError, match=r"^tools: expected at most"):
        texts({"tools": {"x" * 10_000: "1"}}, "tools")


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, 10**400])
def test_a_whole_number_takes_no_more_than_64_bits(value: int) -> None:
    with pytest.raises(RecordError, match=r"^size: expected a number from"):
        whole({"size": value}, "size")
    with pytest.raises(RecordError, match=r"^size: expected a number from 0"):
        count({"size": value}, "size")
    with pytest.raises(RecordError, match=r"^sizes\[0\]: expected a number from"):
        values({"sizes": [value]}, "sizes", int, str)
    assert whole({"size": 2**63 - 1}, "size") == 2**63 - 1


@pytest.mark.parametrize("value", [10**400, -(10**400), 1e999, float("nan")])
def test_a_number_that_no_float_holds_is_refused(value: float) -> None:
    with pytest.raises(RecordError, match=r"^speed: expected a finite number"):
        real({"speed": value}, "speed")


def test_a_number_may_have_bounds() -> None:
    assert real({"seconds": 7}, "seconds", least=0, most=7) == 7.0
    for value in (-1e300, -1, 7.5, 10):
        with pytest.raises(RecordError, match=r"^seconds: expected a number from 0 to 7, got"):
            real({"seconds": value}, "seconds", least=0, most=7)


def test_a_list_may_have_a_greatest_length() -> None:
    record = {"inner": [{"name": "x"}, {"name": "y"}]}
    assert items(record, "inner", lambda one: text(one, "name"), most=2) == ("x", "y")
    with pytest.raises(RecordError, match=r"^inner: expected at most 1, got 2$"):
        items(record, "inner", lambda one: text(one, "name"), most=1)
