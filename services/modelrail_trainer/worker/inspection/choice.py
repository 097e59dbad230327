"""What to do with each column, and what predicting the target means."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from modelrail_trainer.handover.inspection import (
    MAX_CLASSES_SHOWN,
    MAX_TEXTS_SHOWN,
    ColumnWarning,
    InspectedColumn,
    InspectedTarget,
    NumberSummary,
    TargetTask,
    TextCount,
    Use,
    ValueType,
    WarningKind,
)
from modelrail_trainer.rules.table import check_column_name
from modelrail_trainer.worker.inspection.likeness import Likeness
from modelrail_trainer.worker.inspection.sketch import MAX_DISTINCT, ColumnSketch, shown

MAX_ONE_HOT = 100
"""The default of CategoryEncoding: rarer texts are told apart no more."""
LONG_CHARACTERS = 40
FEW_NUMBERS = 20
_MOST_CLASSES = 1_000
_IDENTIFIER_ROWS = 20
_IDENTIFIER_NAMES = ("id", "_id", "index", "rowid", "key", "uuid", "guid")
_FAR = 1e-4
_SMALL_CLASS_ROWS = 10
_UNEVEN = 10


def inspected_column(
    sketch: ColumnSketch, likeness: Likeness | None, task: TargetTask
) -> InspectedColumn:
    """Returns the figures of a column, its warnings and what to do with it.

    Args:
        sketch: The column.
        likeness: To the target; None for the target itself.
        task: What predicting the target means.
    """
    numbers = sketch.numbers.summary() if sketch.type is ValueType.NUMBER else None
    is_text = sketch.type is ValueType.TEXT
    warnings = tuple(_warnings(sketch, likeness, task, numbers))
    return InspectedColumn(
        name=sketch.name,
        type=sketch.type,
        file_type=sketch.file_type,
        missing=sketch.missing,
        distinct=sketch.distinct,
        more_distinct=sketch.more_distinct,
        numbers=numbers,
        texts=sketch.texts.most_frequent(MAX_TEXTS_SHOWN) if is_text else (),
        constant=sketch.is_constant,
        warnings=warnings,
        use=Use.TARGET if likeness is None else _use(sketch, {w.kind for w in warnings}),
    )


def _warnings(
    sketch: ColumnSketch, likeness: Likeness | None, task: TargetTask, numbers: NumberSummary | None
) -> Iterator[ColumnWarning]:
    present = sketch.rows - sketch.missing
    if likeness is not None:
        for problem in check_column_name(sketch.name):
            yield ColumnWarning(
                WarningKind.UNUSABLE, f"{problem}; rename it in the files to learn from it"
            )
    if sketch.type is ValueType.OTHER:
        dates = sketch.file_type.startswith(("date", "time"))
        yield ColumnWarning(
            WarningKind.DATE if dates else WarningKind.UNUSABLE,
            f"the trainer learns from numbers, booleans and texts, not from {sketch.file_type}"
            + ("; make numbers of it first, such as the weekday or days since" if dates else ""),
        )
        return
    if not present:
        yield ColumnWarning(WarningKind.MISSING, "no value is there")
        return
    if sketch.missing > sketch.rows / 2:
        yield ColumnWarning(WarningKind.MISSING, "more than half of the values are missing")
    if sketch.is_constant:
        yield ColumnWarning(WarningKind.CONSTANT, "the value never varies and teaches nothing")
        return
    if likeness is not None and (leak := _leak(likeness, task)):
        yield ColumnWarning(WarningKind.TARGET_LEAK, leak)
    if sketch.type is ValueType.NUMBER:
        yield from _of_numbers(sketch, numbers)
    else:
        yield from _of_texts(sketch)


def _leak(likeness: Likeness, task: TargetTask) -> str:
    if likeness.is_equal:
        return "it is the target itself: a model would read the answer from it"
    if task is TargetTask.CLASSIFICATION and likeness.is_one_to_one:
        return "each of its values goes with one class only, and the other way round"
    return ""


def _of_numbers(sketch: ColumnSketch, numbers: NumberSummary | None) -> Iterator[ColumnWarning]:
    if sketch.strange:
        row, value = sketch.first_strange or (0, "")
        yield ColumnWarning(
            WarningKind.MIXED_TYPES,
            f"the first rows are numbers, and {sketch.strange} later values are not, first "
            f"{value!r} in row {row}, counted from 0; mend them, or read the column as texts",
        )
    if sketch.numbers.infinite:
        yield ColumnWarning(
            WarningKind.UNUSABLE, f"{sketch.numbers.infinite} sampled values are infinite"
        )
    if _names_rows(sketch) and sketch.numbers.are_whole:
        yield ColumnWarning(
            WarningKind.IDENTIFIER, "every row has a number of its own: it names rows"
        )
    if numbers and 0 < numbers.stddev < _FAR * max(abs(numbers.minimum), abs(numbers.maximum)):
        yield ColumnWarning(
            WarningKind.FAR_FROM_ZERO,
            "its numbers are close to each other and far from 0, beyond what 32 bits tell apart; "
            "the exported model takes them as FP64, unless scale is none or log is set",
        )


def _of_texts(sketch: ColumnSketch) -> Iterator[ColumnWarning]:
    if sketch.texts.are_dates:
        yield ColumnWarning(
            WarningKind.DATE,
            "its texts are dates; make numbers of them first, such as the weekday or days since",
        )
    elif _is_long(sketch):
        yield ColumnWarning(
            WarningKind.LONG_TEXT,
            f"its texts are long ({sketch.texts.mean_length:.0f} characters) and seldom the same; "
            "encoded as text it must be the only column to learn from",
        )
    elif _names_rows(sketch):
        yield ColumnWarning(
            WarningKind.IDENTIFIER, "every row has a text of its own: it names rows"
        )
    elif sketch.distinct > MAX_ONE_HOT:
        yield ColumnWarning(
            WarningKind.MANY_VALUES,
            f"{'more than ' if sketch.more_distinct else ''}{sketch.distinct} different texts; "
            "hashed they take no more features than there are buckets",
        )


def _is_long(sketch: ColumnSketch) -> bool:
    present = sketch.rows - sketch.missing
    often_new = sketch.more_distinct or sketch.distinct > present / 2
    return sketch.texts.mean_length > LONG_CHARACTERS and often_new


def _names_rows(sketch: ColumnSketch) -> bool:
    if not sketch.all_differ or sketch.rows < _IDENTIFIER_ROWS:
        return False
    named = sketch.name.lower().endswith(_IDENTIFIER_NAMES)
    return sketch.type is ValueType.TEXT or named or sketch.numbers.ascend


_LEFT_OUT = frozenset(
    {
        WarningKind.CONSTANT,
        WarningKind.DATE,
        WarningKind.IDENTIFIER,
        WarningKind.TARGET_LEAK,
        WarningKind.UNUSABLE,
    }
)


def _use(sketch: ColumnSketch, warned: set[WarningKind]) -> Use:
    if warned & _LEFT_OUT or sketch.missing == sketch.rows:
        return Use.LEFT_OUT
    if WarningKind.LONG_TEXT in warned:
        return Use.TEXT
    if WarningKind.MIXED_TYPES in warned:
        return Use.CATEGORY
    if sketch.type is ValueType.NUMBER:
        return Use.NUMBER
    return Use.HASH if WarningKind.MANY_VALUES in warned else Use.CATEGORY


def settled(columns: Sequence[InspectedColumn]) -> tuple[InspectedColumn, ...]:
    """Returns the columns such that one specification can use them all.

    A text that is read by its words stands alone; beside other columns it is left out, and of
    several the first is taken.
    """
    unlearned = (Use.LEFT_OUT, Use.TARGET, Use.SPLIT)
    used = [column for column in columns if column.use not in unlearned]
    keeps_text = used[0] if used and all(column.use is Use.TEXT for column in used) else None
    return tuple(
        replace(column, use=Use.LEFT_OUT)
        if column.use is Use.TEXT and column is not keeps_text
        else column
        for column in columns
    )


def task_of(sketch: ColumnSketch) -> TargetTask:
    """Returns what predicting a column means."""
    if sketch.type is ValueType.OTHER or sketch.strange or sketch.distinct < 2:
        return TargetTask.NONE
    few = not sketch.more_distinct and sketch.distinct <= _MOST_CLASSES
    if sketch.type is ValueType.TEXT:
        return TargetTask.CLASSIFICATION if few else TargetTask.NONE
    if sketch.numbers.are_whole and sketch.distinct <= FEW_NUMBERS:
        return TargetTask.CLASSIFICATION
    return TargetTask.REGRESSION


def inspected_target(
    sketch: ColumnSketch, counts: dict[str, int], *, guessed: bool
) -> InspectedTarget:
    """Returns what predicting a column means.

    Args:
        sketch: The column.
        counts: Rows of each class, in those that were read.
        guessed: Whether nobody named it.
    """
    task = task_of(sketch)
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    is_classes = task is TargetTask.CLASSIFICATION
    return InspectedTarget(
        name=sketch.name,
        guessed=guessed,
        task=task,
        classes=tuple(TextCount(shown(name), count) for name, count in ranked[:MAX_CLASSES_SHOWN])
        if is_classes
        else (),
        class_count=sketch.distinct if is_classes else 0,
        missing=sketch.missing,
        numbers=sketch.numbers.summary() if task is TargetTask.REGRESSION else None,
        warnings=tuple(_of_target(sketch, task, ranked)),
    )


def _of_target(
    sketch: ColumnSketch, task: TargetTask, ranked: Sequence[tuple[str, int]]
) -> Iterator[str]:
    if task is TargetTask.NONE:
        yield f"it can be no target: {_no_target(sketch)}"
        return
    if sketch.missing:
        yield (
            f"{sketch.missing} rows have no target; the suggested specification leaves them out "
            "(skip_unusable_rows)"
        )
    if task is not TargetTask.CLASSIFICATION or not ranked:
        return
    (largest, most), (smallest, least) = ranked[0], ranked[-1]
    if most >= _UNEVEN * least:
        yield (
            f"the classes are uneven: {shown(largest)!r} has {most} rows and {shown(smallest)!r} "
            f"has {least}; accuracy says little then, and class_weights of cross_entropy can help"
        )
    if least < _SMALL_CLASS_ROWS:
        yield (
            f"class {shown(smallest)!r} has {least} rows: too few to be met in the training, "
            "validation and test rows"
        )


def _no_target(sketch: ColumnSketch) -> str:
    if sketch.type is ValueType.OTHER:
        return f"its type is {sketch.file_type}"
    if sketch.strange:
        return "its first rows are numbers and later ones are not"
    if sketch.distinct < 2:
        return "its value never varies"
    return f"it has more than {min(_MOST_CLASSES, MAX_DISTINCT)} different texts"
