"""What a look into a table found, for people."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from modelrail.cli.console import cell, say, stdout
from modelrail.report.visible import on_one_line
from modelrail.trainer.v1 import trainer_pb2 as pb

_PREVIEW_COLUMNS = 8
_PREVIEW_CHARACTERS = 20
_COLUMNS_SHOWN = 200
_CLASSES_SHOWN = 10

_TYPES = {
    pb.InspectedColumn.TYPE_NUMBER: "number",
    pb.InspectedColumn.TYPE_TEXT: "text",
}
_USES = {
    pb.InspectedColumn.USE_TARGET: "target",
    pb.InspectedColumn.USE_NUMBER: "number",
    pb.InspectedColumn.USE_CATEGORY: "category",
    pb.InspectedColumn.USE_HASH: "hash",
    pb.InspectedColumn.USE_TEXT: "text",
    pb.InspectedColumn.USE_SPLIT: "split",
}
_WARNED = "yellow"


def show_inspection(found: pb.InspectDatasetResponse) -> None:
    """Writes files, columns, target and first rows as tables."""
    total = sum(file.size_bytes for file in found.files)
    about = "about " if found.rows_estimated else ""
    names = found.files[0].path if len(found.files) == 1 else f"{len(found.files)} files"
    say(
        f"{on_one_line(names)}: {about}{found.rows:,} rows, {len(found.columns):,} columns, "
        f"{total:,} bytes of {found.files[0].format}",
        style="bold",
    )
    if found.rows_sampled < found.rows:
        say(f"means, deviations and texts are of {found.rows_sampled:,} rows, evenly chosen")
    for warning in found.warnings:
        say(f"! {on_one_line(warning)}", style=_WARNED)
    _show_columns(found)
    warned = [(column, one) for column in found.columns for one in column.warnings]
    if warned:
        say("")
    for column, one in warned:
        say(f"! {on_one_line(column.name)}: {on_one_line(one.message)}", style=_WARNED)
    if found.HasField("target"):
        _show_target(found.target)
    _show_preview(found)


def _show_columns(found: pb.InspectDatasetResponse) -> None:
    table = Table("column", "type", "in the file", box=None, pad_edge=False)
    for heading in ("missing", "distinct", "smallest", "mean", "largest", "deviation"):
        table.add_column(heading, justify="right")
    table.add_column("most frequent", overflow="ellipsis", no_wrap=True, max_width=48)
    table.add_column("suggested")
    for column in found.columns[:_COLUMNS_SHOWN]:
        numbers = column.numbers
        figures = (
            [f"{x:.6g}" for x in (numbers.minimum, numbers.mean, numbers.maximum, numbers.stddev)]
            if column.HasField("numbers")
            else [""] * 4
        )
        use = _USES.get(column.use, "left out")
        table.add_row(
            cell(column.name, style="bold"),
            _TYPES.get(column.type, "-"),
            cell(column.file_type),
            f"{column.missing:,}" if column.missing else "-",
            f"{'> ' if column.more_distinct else ''}{column.distinct:,}" if column.type else "",
            *figures,
            cell(", ".join(f"{one.text} ({one.count})" for one in column.texts)),
            Text(use, style=_WARNED if use == "left out" else ""),
        )
    stdout().print(table)
    if len(found.columns) > _COLUMNS_SHOWN:
        say(f"… and {len(found.columns) - _COLUMNS_SHOWN:,} columns more (--json has them all)")


def _show_target(target: pb.InspectedTarget) -> None:
    how = " (guessed; --target names another)" if target.guessed else ""
    name = on_one_line(target.name)
    say("")
    match target.task:
        case pb.InspectedTarget.TASK_CLASSIFICATION:
            say(f"target {name}{how}: {target.class_count:,} classes", style="bold")
            shown = target.classes[:_CLASSES_SHOWN]
            more = ", …" if target.class_count > len(shown) else ""
            classes = ", ".join(f"{one.text} ({one.count:,})" for one in shown)
            say(f"  {on_one_line(classes)}{more}")
        case pb.InspectedTarget.TASK_REGRESSION:
            low, high = target.numbers.minimum, target.numbers.maximum
            say(f"target {name}{how}: a number from {low:.6g} to {high:.6g}", style="bold")
        case _:
            say(f"target {name}{how}", style="bold")
    for warning in target.warnings:
        say(f"! {on_one_line(warning)}", style=_WARNED)


def _show_preview(found: pb.InspectDatasetResponse) -> None:
    if not found.preview:
        return
    shown = found.columns[:_PREVIEW_COLUMNS]
    table = Table(box=None, pad_edge=False, title_justify="left")
    for column in shown:
        table.add_column(
            cell(column.name), max_width=_PREVIEW_CHARACTERS, no_wrap=True, overflow="ellipsis"
        )
    for row in found.preview:
        table.add_row(
            *(
                Text("missing", style="dim") if value.missing else cell(value.text)
                for value in row.cells[:_PREVIEW_COLUMNS]
            )
        )
    say("")
    more = len(found.columns) - len(shown)
    say(f"first rows{f' ({more:,} columns more)' if more else ''}:", style="bold")
    stdout().print(table)
    say("")
