"""Columns of Arrow as those of NumPy, and what their values are."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from modelrail_trainer.encodings.column import Column, ColumnType
from modelrail_trainer.failure import DataError

Numbers = npt.NDArray[np.int64]


def is_discrete(kind: pa.DataType) -> bool:
    """Returns whether values are told apart by their texts as well as by their numbers."""
    return bool(pa.types.is_integer(kind) or pa.types.is_boolean(kind))


def type_of(kind: pa.DataType) -> ColumnType | None:
    """Returns what values of a type are; None when neither numbers nor texts."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return ColumnType.TEXT
    is_number = (
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_decimal(kind)
        or pa.types.is_null(kind)
    )
    return ColumnType.NUMBER if is_number else None


def check_utf8(name: str, values: pa.Array, numbers: Numbers) -> None:
    """Refuses texts that are no UTF-8, which Parquet and Arrow files do not rule out.

    Args:
        name: Of the column.
        values: Of some rows, [N].
        numbers: Of those rows, [N], from 0 over all files.
    """
    plain = values.dictionary if pa.types.is_dictionary(values.type) else values
    if type_of(plain.type) is not ColumnType.TEXT:
        return
    try:
        plain.validate(full=True)
        return
    except pa.ArrowInvalid:
        pass
    for position, value in enumerate(values):
        # The scalar of a dictionary is of a type of its own; its value is a text again.
        content = value.value if pa.types.is_dictionary(values.type) else value
        raw = None if content is None or not content.is_valid else content.as_buffer().to_pybytes()
        try:
            (raw or b"").decode()
        except UnicodeDecodeError as error:
            wrong = (raw or b"")[error.start : error.end].hex()
            raise DataError(
                f"column {name!r}: expected texts in UTF-8, got the bytes {wrong} at place "
                f"{error.start} of row {numbers[position]}, counted from 0 over all "
                "files; write the file again from the text decoded in its own encoding (latin-1, "
                "say), or leave the column out"
            ) from None


def common_field(field: pa.Field, other: pa.Field) -> pa.Field | None:
    """Returns a column that holds the values of both; None where texts and numbers would mix."""
    schemas = [pa.schema([field]), pa.schema([other])]
    try:
        return pa.unify_schemas(schemas, promote_options="permissive").field(0)
    except pa.ArrowException:  # none; but texts are texts, and dates are converted or refused
        both = {type_of(field.type), type_of(other.type)}
        return field if both in ({ColumnType.TEXT}, {None}) else None


def as_key(values: pa.Array) -> pa.Array:
    """Returns for values [N] texts that are equal where they are, null where there is none."""
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if pa.types.is_floating(values.type):
        # Two zeros are equal, and a value that is no number is none.
        values = pc.if_else(pc.is_nan(values), None, pc.add(values, 0.0))
    elif pa.types.is_temporal(values.type):
        width = pa.int32() if values.type.bit_width == 32 else pa.int64()
        values = values.cast(width)
    return pc.cast(values, pa.large_string())


def as_numpy(values: pa.Array, kind: ColumnType) -> Column:
    """Returns values [N] as NumPy has them."""
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if kind is ColumnType.NUMBER:
        # Not safe: whole numbers beyond 2^53 lose their last digits, as they do in the network.
        numbers = pc.cast(values, pa.float64(), safe=False)
        return np.array(pc.fill_null(numbers, float("nan")), np.float64)  # [N]
    return np.array(pc.fill_null(pc.cast(values, pa.large_string()), ""), object)  # [N]
