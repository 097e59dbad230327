"""The journal of a job: what the worker tells the service, one JSON object a line.

The worker writes, the service follows with an offset of its own that it stores beside the events.
So the service may die and come back without losing or doubling an event, and the worker never waits
for anyone.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from modelrail_trainer.handover.data_summary import DataSummary, data_summary_from_record
from modelrail_trainer.handover.job_file import NotAJobFileError, open_job_file
from modelrail_trainer.handover.record import (
    MOST_INT32,
    Record,
    RecordError,
    as_record,
    count,
    flag,
    items,
    member,
    nested,
    real,
    text,
)
from modelrail_trainer.isolation.layer import Layer, LayerName

JOURNAL_NAME = "events.jsonl"
MAX_TEXT_BYTES = 8 * 1024  # a longer log line or message is cut, with a mark at its end
# Six bytes of JSON for one of text is the worst case (`\u0000`).
MAX_LINE_BYTES = 64 * 1024
MAX_METRICS = 200
"""Figures at a time."""
MAX_SECONDS = 315_576_000_000.0
"""10,000 years: the longest `google.protobuf.Duration`."""
_MAX_NAME_CHARACTERS = 100
_READ_BYTES = 1024 * 1024
_CUT_MARK = " …"


class JournalError(ValueError):
    """A whole line of a journal is not an event."""


class Phase(StrEnum):
    """What the worker is doing. The service's job states of the same names follow it."""

    PREPARING = "preparing"
    RUNNING = "running"
    EXPORTING = "exporting"


class FailureReason(StrEnum):
    """Why a worker gave up; the names of `TrainingJob.JobError.Reason` without their prefix."""

    DATA = "DATA"
    NAN_LOSS = "NAN_LOSS"
    EXPORT_FAILED = "EXPORT_FAILED"
    GATE_FAILED = "GATE_FAILED"
    INTERNAL = "INTERNAL"
    USER_CODE = "USER_CODE"
    DISK_FULL = "DISK_FULL"
    DEVICE_UNAVAILABLE = "DEVICE_UNAVAILABLE"


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One figure.

    Attributes:
        name: Such as `loss` or `accuracy`.
        value: In the unit of the metric; a ratio lies between 0 and 1. Always finite.
        split: Part of the data: `train`, `validation` or `test`.
        epoch: Epoch after which, or in which, it was measured, from 1; 0 for final figures.
        runtime: What computed the model's outputs: `pytorch` or `onnxruntime`.
        step: Optimiser steps that had ended then; 0 for final figures.
    """

    name: str
    value: float
    split: str
    epoch: int
    runtime: str
    step: int = 0


@dataclass(frozen=True, slots=True)
class PhaseEvent:
    """The worker begins a phase."""

    phase: Phase


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsEvent:
    """An epoch ended, one goes on, perhaps with a validation, or (epoch 0) the model's figures.

    Attributes:
        epoch: Epochs that have ended.
        epochs: Epochs in all.
        step: Optimiser steps that have ended.
        rows_per_second: Rows trained on in a second, over the last epoch or what is done of it.
        metrics: The figures; empty where only progress is told.
        eta_seconds: Until the last epoch ends, at the present speed; None: nobody knows, or
            training has ended.
        steps: Optimiser steps in all; 0: nobody knows, or nothing is trained.
    """

    epoch: int
    epochs: int
    step: int
    rows_per_second: float
    metrics: tuple[Metric, ...]
    eta_seconds: float | None = None
    steps: int = 0


@dataclass(frozen=True, slots=True)
class DataEvent:
    """The data is read."""

    summary: DataSummary


@dataclass(frozen=True, slots=True)
class CheckpointEvent:
    """A checkpoint is on the disk.

    Attributes:
        step: Optimiser steps that it holds.
        since: Those that this process went on from; 0: it began anew.
    """

    step: int
    since: int


@dataclass(frozen=True, slots=True)
class LogEvent:
    """The worker wrote a line, without its end."""

    text: str


@dataclass(frozen=True, slots=True)
class FailedEvent:
    """The worker gave up. The last event of its journal."""

    reason: FailureReason
    message: str


@dataclass(frozen=True, slots=True)
class FinishedEvent:
    """The result is in place. The last event of its journal."""


@dataclass(frozen=True, slots=True)
class StoppedEvent:
    """The worker ends as it was asked to, and a checkpoint holds what it trained. The last event.

    Attributes:
        step: Optimiser steps that the checkpoint holds.
    """

    step: int


@dataclass(frozen=True, slots=True)
class IsolationEvent:
    """The process has confined itself. The first event of its journal; later ones count nothing."""

    layers: tuple[Layer, ...]


JournalEvent = (
    IsolationEvent
    | PhaseEvent
    | DataEvent
    | MetricsEvent
    | CheckpointEvent
    | LogEvent
    | FailedEvent
    | FinishedEvent
    | StoppedEvent
)


class JournalWriter:
    """Appends events to a journal; a context manager.

    Each event has reached the file, whole, before the method returns. It is not synced to the
    disk: a journal has to survive the death of its processes, and a machine that dies takes the
    worker along anyway.
    """

    def __init__(self, path: Path) -> None:
        # Not opened for appending: a half line that a killed predecessor left has to go first. No
        # reader has moved past it, for readers stop at the last line end.
        self._file: BinaryIO = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b", 0)
        self._file.truncate(_end_of_last_line(self._file))
        self._file.seek(0, os.SEEK_END)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def write(self, event: JournalEvent) -> None:
        """Appends one event. Texts beyond `MAX_TEXT_BYTES` are cut.

        Raises:
            ValueError: A number is not finite.
            OSError: The disk is full; the journal is as it was.
        """
        line = json.dumps(_encode(event), ensure_ascii=False, allow_nan=False)
        content = memoryview(line.encode("utf-8", "replace") + b"\n")
        start = self._file.tell()
        try:
            while content:  # a disk that fills up takes a part
                content = content[self._file.write(content) :]
        except OSError:
            # A half line would make the next event a part of itself.
            self._file.truncate(start)
            self._file.seek(start)
            raise

    def log(self, line: str) -> None:
        """Appends a line of text; a text of several lines becomes an event for each."""
        for part in line.splitlines() or [""]:
            self.write(LogEvent(part))


def read_events(path: Path, offset: int) -> tuple[list[JournalEvent], int]:
    """Returns the whole lines after a position, at most 1 MiB, and the position after them.

    A half-written last line stays unread until it is whole; a journal that does not exist yet is
    empty. When nothing new is there, the position comes back unchanged: that is how a reader knows
    it has caught up.

    Args:
        path: The journal.
        offset: Position in bytes, 0 or one that was returned before.

    Raises:
        JournalError: A whole line is not an event, a line is longer than `MAX_LINE_BYTES`, or the
            journal is no plain file.
    """
    try:
        with open_job_file(path.parent, path.name) as file:
            file.seek(offset)
            data = file.read(_READ_BYTES)
    except FileNotFoundError:
        return [], offset
    except NotAJobFileError as error:
        raise JournalError(f"the journal cannot be read: {error}") from error
    whole_lines, end, rest = data.rpartition(b"\n")
    if len(rest) > MAX_LINE_BYTES and not end:
        raise JournalError(f"the line at byte {offset} is longer than {MAX_LINE_BYTES} bytes")
    events: list[JournalEvent] = []
    position = offset
    for line in whole_lines.split(b"\n") if end else []:
        if len(line) > MAX_LINE_BYTES:
            raise JournalError(f"the line at byte {position} is longer than {MAX_LINE_BYTES} bytes")
        try:
            events.append(_decode(line))
        # Includes broken JSON, broken UTF-8 and RecordError.
        except (ValueError, RecursionError) as error:
            raise JournalError(f"the line at byte {position} is not an event: {error}") from error
        position += len(line) + 1
    return events, position


def cut(line: str, most_bytes: int = MAX_TEXT_BYTES) -> str:
    """Returns the text, cut to so many bytes of UTF-8 and marked when it was longer."""
    encoded = line.encode("utf-8", "replace")
    if len(encoded) <= most_bytes:
        return encoded.decode()
    kept = encoded[: most_bytes - len(_CUT_MARK.encode())]
    return kept.decode("utf-8", "ignore") + _CUT_MARK


def metric_from_record(record: Record) -> Metric:
    """Reads a metric.

    Raises:
        RecordError: A field is missing, has another type, or is none that a message holds.
    """
    return Metric(
        name=text(record, "name", most=_MAX_NAME_CHARACTERS),
        value=real(record, "value"),
        split=text(record, "split", most=_MAX_NAME_CHARACTERS),
        epoch=count(record, "epoch", most=MOST_INT32),
        runtime=text(record, "runtime", most=_MAX_NAME_CHARACTERS),
        # Workers before this one did not tell it.
        step=count(record, "step") if "step" in record else 0,
    )


def layer_from_record(record: Record) -> Layer:
    """Reads a layer of the isolation.

    Raises:
        RecordError: A field is missing or has another type, or there is no layer of that name.
    """
    return Layer(
        name=member(record, "name", LayerName),
        active=flag(record, "active"),
        detail=text(record, "detail", most=MAX_TEXT_BYTES),
    )


def _end_of_last_line(file: BinaryIO) -> int:
    size = file.seek(0, os.SEEK_END)
    start = max(0, size - MAX_LINE_BYTES)
    file.seek(start)
    tail = file.read(size - start)
    return start + tail.rfind(b"\n") + 1


def _encode(event: JournalEvent) -> dict[str, object]:  # noqa: PLR0911  # one return a kind
    match event:
        case IsolationEvent():
            return {"kind": "isolation", **asdict(event)}
        case PhaseEvent(phase=phase):
            return {"kind": "phase", "phase": phase.value}
        case DataEvent(summary=summary):
            return {"kind": "data", "summary": asdict(summary.shortened())}
        case MetricsEvent():
            return {"kind": "metrics", **asdict(event)}
        case CheckpointEvent():
            return {"kind": "checkpoint", **asdict(event)}
        case LogEvent(text=line):
            return {"kind": "log", "text": cut(line)}
        case FailedEvent(reason=reason, message=message):
            return {"kind": "failed", "reason": reason.value, "message": cut(message)}
        case FinishedEvent():
            return {"kind": "finished"}
        case StoppedEvent():
            return {"kind": "stopped", **asdict(event)}


def _decode(line: bytes) -> JournalEvent:  # noqa: PLR0911  # one return a kind
    record = as_record(json.loads(line), "event")
    match text(record, "kind"):
        case "isolation":
            return IsolationEvent(items(record, "layers", layer_from_record, most=len(LayerName)))
        case "phase":
            return PhaseEvent(member(record, "phase", Phase))
        case "data":
            return DataEvent(data_summary_from_record(nested(record, "summary")))
        case "metrics":
            return MetricsEvent(
                epoch=count(record, "epoch", most=MOST_INT32),
                epochs=count(record, "epochs", most=MOST_INT32),
                step=count(record, "step"),
                rows_per_second=real(record, "rows_per_second", least=0),
                metrics=items(record, "metrics", metric_from_record, most=MAX_METRICS),
                eta_seconds=None
                if record.get("eta_seconds") is None
                else real(record, "eta_seconds", least=0, most=MAX_SECONDS),
                # Workers before this one did not tell it.
                steps=count(record, "steps") if "steps" in record else 0,
            )
        case "checkpoint":
            return CheckpointEvent(count(record, "step"), count(record, "since"))
        case "log":
            return LogEvent(cut(text(record, "text")))
        case "failed":
            return FailedEvent(
                member(record, "reason", FailureReason), cut(text(record, "message"))
            )
        case "finished":
            return FinishedEvent()
        case "stopped":
            return StoppedEvent(count(record, "step"))
        case kind:
            raise RecordError(f"kind: {kind[:80]!r} is no kind of event")
