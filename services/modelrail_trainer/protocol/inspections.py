"""From requests about tables to what a process is asked, and from what it found to replies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from modelrail.trainer.v1 import trainer_pb2 as pb
from modelrail_server.errors import FieldViolation, InvalidArgument
from modelrail_trainer.handover.inspection import (
    MAX_ROWS,
    InspectedColumn,
    InspectedTarget,
    Inspection,
    NumberSummary,
    TargetTask,
    TextCount,
    Use,
    ValueType,
)
from modelrail_trainer.protocol.requests import split_paths, unknown_in
from modelrail_trainer.protocol.specification import spec_from_pb
from modelrail_trainer.protocol.suggestion import suggested_spec
from modelrail_trainer.rules.split import check_split
from modelrail_trainer.rules.table import check_table
from modelrail_trainer.spec import TableDataset, with_defaults

_DEFAULT_ROWS = 10
_TARGET = "dataset.table.target"


@dataclass(frozen=True, slots=True)
class AskedInspection:
    """What a caller wants to know.

    Attributes:
        specification: One with nothing but the data set and the split, in its deterministic
            encoding.
        data_paths: The files, by the field of the request that names them.
        rows: Rows to show.
    """

    specification: bytes
    data_paths: Mapping[str, str]
    rows: int


def inspection_from_pb(request: pb.InspectDatasetRequest) -> AskedInspection:
    """Reads and checks a request.

    Raises:
        InvalidArgument: Names every wrong field.
    """
    violations = list(unknown_in(request))
    message = pb.TrainingJobSpec(dataset=request.dataset)
    if request.HasField("split"):
        message.split.CopyFrom(request.split)
    specification = with_defaults(spec_from_pb(message))
    table, split = specification.dataset, specification.split
    paths: tuple[str, ...] = ()
    if isinstance(table, TableDataset):
        paths = table.paths
        violations += [
            FieldViolation(field, description)
            for field, description in check_table(table)
            if field != _TARGET or table.target  # without one it is guessed
        ]
    else:
        got = request.dataset.WhichOneof("source") or "none"
        violations.append(FieldViolation("dataset", f"expected a table, got {got}"))
    violations += [FieldViolation(*wrong) for wrong in check_split(split, table)]
    if not 0 <= request.rows <= MAX_ROWS:
        violations.append(
            FieldViolation("rows", f"expected from 0 to {MAX_ROWS} rows, got {request.rows}")
        )
    if violations:
        raise InvalidArgument(
            "; ".join(f"{one.field}: {one.description}" for one in violations[:10]),
            violations=violations[:100],
        )
    return AskedInspection(
        message.SerializeToString(deterministic=True),
        {f"dataset.table.paths[{place}]": path for place, path in enumerate(paths)}
        | split_paths(split),
        request.rows or _DEFAULT_ROWS,
    )


def inspection_to_pb(
    found: Inspection, request: pb.InspectDatasetRequest
) -> pb.InspectDatasetResponse:
    """Returns what was found, and a specification to start from.

    Args:
        found: What the process found.
        request: What it was asked about.
    """
    table, split = request.dataset.table, request.split
    paths = [*table.paths, *split.validation_paths, *split.test_paths]
    return pb.InspectDatasetResponse(
        files=[
            pb.InspectedFile(path=path, size_bytes=file.size_bytes, format=file.format)
            for path, file in zip(paths, found.files, strict=True)
        ],
        rows=found.rows,
        rows_estimated=found.rows_estimated,
        rows_read=found.rows_read,
        rows_sampled=found.rows_sampled,
        columns=[_column_to_pb(column) for column in found.columns],
        target=None if found.target is None else _target_to_pb(found.target),
        preview=[
            pb.PreviewRow(
                cells=[pb.PreviewCell(text=cell or "", missing=cell is None) for cell in row]
            )
            for row in found.preview
        ],
        suggested_spec=suggested_spec(found, table, split),
        warnings=found.warnings,
    )


_TYPES = {
    ValueType.NUMBER: pb.InspectedColumn.TYPE_NUMBER,
    ValueType.TEXT: pb.InspectedColumn.TYPE_TEXT,
    ValueType.OTHER: pb.InspectedColumn.TYPE_UNSPECIFIED,
}
_USES = {
    Use.LEFT_OUT: pb.InspectedColumn.USE_UNSPECIFIED,
    Use.TARGET: pb.InspectedColumn.USE_TARGET,
    Use.NUMBER: pb.InspectedColumn.USE_NUMBER,
    Use.CATEGORY: pb.InspectedColumn.USE_CATEGORY,
    Use.HASH: pb.InspectedColumn.USE_HASH,
    Use.TEXT: pb.InspectedColumn.USE_TEXT,
    Use.SPLIT: pb.InspectedColumn.USE_SPLIT,
}
_TASKS = {
    TargetTask.CLASSIFICATION: pb.InspectedTarget.TASK_CLASSIFICATION,
    TargetTask.REGRESSION: pb.InspectedTarget.TASK_REGRESSION,
    TargetTask.NONE: pb.InspectedTarget.TASK_UNSPECIFIED,
}


def _column_to_pb(column: InspectedColumn) -> pb.InspectedColumn:
    return pb.InspectedColumn(
        name=column.name,
        type=_TYPES[column.type],
        file_type=column.file_type,
        missing=column.missing,
        distinct=column.distinct,
        more_distinct=column.more_distinct,
        numbers=_numbers_to_pb(column.numbers),
        texts=_texts_to_pb(column.texts),
        constant=column.constant,
        warnings=[
            pb.ColumnWarning(kind=f"KIND_{one.kind.name}", message=one.message)
            for one in column.warnings
        ],
        use=_USES[column.use],
    )


def _target_to_pb(target: InspectedTarget) -> pb.InspectedTarget:
    return pb.InspectedTarget(
        name=target.name,
        guessed=target.guessed,
        task=_TASKS[target.task],
        classes=_texts_to_pb(target.classes),
        class_count=target.class_count,
        numbers=_numbers_to_pb(target.numbers),
        warnings=target.warnings,
    )


def _numbers_to_pb(numbers: NumberSummary | None) -> pb.NumberSummary | None:
    if numbers is None:
        return None
    return pb.NumberSummary(
        minimum=numbers.minimum, maximum=numbers.maximum, mean=numbers.mean, stddev=numbers.stddev
    )


def _texts_to_pb(texts: tuple[TextCount, ...]) -> list[pb.TextCount]:
    return [pb.TextCount(text=one.text, count=one.count) for one in texts]
