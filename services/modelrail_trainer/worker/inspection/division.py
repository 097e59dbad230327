"""Which columns of a table divide its rows, rather than being learned from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from modelrail_trainer.handover.inspection import InspectedColumn, Use, ValueType
from modelrail_trainer.spec import PARTS, Split
from modelrail_trainer.worker.inspection.sketch import MAX_DISTINCT, ColumnSketch, shown


def divided(
    columns: Sequence[InspectedColumn], sketches: Mapping[str, ColumnSketch], split: Split
) -> tuple[tuple[InspectedColumn, ...], tuple[str, ...]]:
    """Returns the columns, with those marked that divide the rows, and what to doubt of them.

    They are those that the split names. Where it says nothing they are those whose values are
    exactly the names of the parts.
    """
    own = split.own_columns
    fractions = split.validation_fraction or split.test_fraction
    if not (own or split.own_paths or fractions):
        own = tuple(
            column.name
            for column in columns
            if column.use is not Use.TARGET and _says_parts(sketches[column.name])
        )
    marked = tuple(
        replace(column, use=Use.SPLIT) if column.name in own else column for column in columns
    )
    return marked, tuple(_doubts(sketches, split))


def _says_parts(sketch: ColumnSketch) -> bool:
    return not sketch.missing and sketch.distinct == len(PARTS) and _texts(sketch) == set(PARTS)


def _doubts(sketches: Mapping[str, ColumnSketch], split: Split) -> Iterator[str]:
    if split.column:
        told = f"column {shown(split.column)!r} of split.column"
        yield from (f"{told}: {doubt}" for doubt in _doubts_of_parts(sketches[split.column]))
    if split.group_column and (missing := sketches[split.group_column].missing):
        yield (
            f"column {shown(split.group_column)!r} of split.group_column: {missing} rows have no "
            "value, and cannot be used"
        )


def _doubts_of_parts(sketch: ColumnSketch) -> Iterator[str]:
    parts = ", ".join(PARTS)
    if sketch.type is not ValueType.TEXT:
        yield f"expected the texts {parts}, got {sketch.file_type}"
        return
    if sketch.missing:
        yield f"{sketch.missing} rows have no value; expected one of {parts} in each"
    if others := sorted(_texts(sketch) - set(PARTS)):
        yield f"expected none but {parts}, got {others[0]!r} too"
    for absent in [part for part in PARTS if part not in _texts(sketch)]:
        yield f"no row has {absent!r}, and every part needs rows"


def _texts(sketch: ColumnSketch) -> set[str]:
    return {one.text for one in sketch.texts.most_frequent(MAX_DISTINCT)}
