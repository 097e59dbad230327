"""Real worker processes, from a specification to a file that another runtime computes."""

from __future__ import annotations

import errno
import json
import os
import platform
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
import yaml
from google.protobuf import json_format, struct_pb2
from google.protobuf.message import Message

import modelrail
from modelrail.trainer.v1 import trainer_pb2 as pb
from modelrail_trainer.execution.processes.output import read_output
from modelrail_trainer.handover.artifact import REFERENCE_NAME, load_result, verify_files
from modelrail_trainer.handover.journal import (
    CheckpointEvent,
    DataEvent,
    FailedEvent,
    FailureReason,
    FinishedEvent,
    JournalEvent,
    JournalWriter,
    LogEvent,
    MetricsEvent,
    Phase,
    PhaseEvent,
    StoppedEvent,
    read_events,
)
from modelrail_trainer.handover.pulse import PULSE_NAME, SHOW_AND_END, last_beat
from modelrail_trainer.jobs.job import OutputMark
from modelrail_trainer.protocol.specification import spec_from_pb
from modelrail_trainer.spec import with_defaults
from modelrail_trainer.worker import data
from modelrail_trainer.worker.job import run_job
from modelrail_trainer.worker.learning import loop
from modelrail_trainer.worker.learning.pace import Reports
from modelrail_trainer.worker.part import Inputs
from modelrail_trainer.worker.training_data import TrainingData

EXAMPLES = Path(modelrail.__file__).parent / "examples"
SECONDS = 120.0
RESULT_FILES = {"model.onnx", "result.json"}
EXIT_FAILED = 3
EXIT_DEFECT = 70
EXIT_STOPPED = 75

Worker = subprocess.Popen[bytes]
Start = Callable[..., Worker]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts workers in the test's directory, and leaves none behind."""
    workers: list[Worker] = []

    def begin(spec: Message, *, file_size_bytes: int | None = None) -> Worker:
        worker = _start(spec, tmp_path)
        workers.append(worker)
        if file_size_bytes is not None:  # long before it has imported what it needs to write
            limits = (file_size_bytes, file_size_bytes)
            resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, limits)
        return worker

    yield begin
    for worker in workers:
        worker.kill()
        worker.wait()


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a finished job on the digits example."""
    return _finished("digits", tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a finished job on the article's line."""
    return _finished("linear", tmp_path_factory.mktemp("line"))


def test_the_line_of_the_article_is_learned_and_exported(line: Path) -> None:
    # y(0) is the bias, y(1) - y(0) the weight, as another runtime computes them from the file.
    at_zero, at_one = _run(line, "x", np.array([[0.0], [1.0]], np.float32))["y"][:, 0]
    assert at_zero == pytest.approx(1.0, abs=1e-3)
    assert at_one - at_zero == pytest.approx(0.5, abs=1e-3)

    result = load_result(line)
    verify_files(result, line)
    learned = {metric.name: metric.value for metric in result.metrics if metric.split == "train"}
    assert learned["weight"] == pytest.approx(float(at_one - at_zero), abs=1e-6)
    assert learned["bias"] == pytest.approx(float(at_zero), abs=1e-6)


def test_the_journal_tells_the_whole_run_in_order(line: Path) -> None:
    events = _events(line)
    phases = [event.phase for event in events if isinstance(event, PhaseEvent)]
    assert phases == [Phase.PREPARING, Phase.RUNNING, Phase.EXPORTING]
    assert isinstance(events[0], PhaseEvent)
    assert isinstance(events[-1], FinishedEvent)
    reports = [event for event in events if isinstance(event, MetricsEvent)]
    assert [report.epoch for report in reports] == [*range(1, 101), 100]
    assert reports[-1].metrics == load_result(line).metrics
    assert {metric.epoch for metric in reports[-1].metrics} == {0}
    lines = [event.text for event in events if isinstance(event, LogEvent)]
    losses = [line for line in lines if line.startswith("epoch ")]
    numbers = [int(line.split()[1].split("/")[0]) for line in losses]
    assert numbers == [1, *range(10, 101, 10)]


def test_the_journal_tells_which_epoch_was_the_best_and_why_training_ended(
    line: Path, start: Start, tmp_path: Path
) -> None:
    (plain,) = _lines(line, "training ended")
    assert plain.startswith("training ended after epoch 100/100: all epochs are done; best epoch ")

    spec = _example("digits")
    # The first epoch's accuracy is not beaten by the second's, which hardly learns.
    spec.schedule.step.every_epochs = 1
    spec.schedule.step.factor = 1e-9
    spec.selection.metric = "accuracy"
    spec.selection.patience_epochs = 2
    assert start(spec).wait(SECONDS) == 0, _log(tmp_path)
    (early,) = _lines(tmp_path, "training ended")
    assert early.startswith(
        "training ended after epoch 3/15: 2 epochs in a row were not better; "
        "best epoch 1, validation accuracy 0."
    )
    assert early.endswith("; the best epoch's weights are exported")
    reports = [event for event in _events(tmp_path) if isinstance(event, MetricsEvent)]
    assert [(report.epoch, report.epochs) for report in reports] == [
        *((epoch, 15) for epoch in (1, 2, 3)),
        (3, 15),
    ]


class _Crowded(JournalWriter):
    """A journal on a disk that is full whenever progress is told within an epoch."""

    def write(self, event: JournalEvent) -> None:
        if isinstance(event, MetricsEvent) and not event.metrics:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().write(event)


@pytest.mark.parametrize("kind", [JournalWriter, _Crowded])
def test_the_journal_tells_progress_within_an_epoch_as_far_as_the_disk_takes_it(
    kind: type[JournalWriter], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "Reports", lambda: Reports(0.0, lambda: 0.0))
    job = with_defaults(spec_from_pb(_example("digits")))
    with kind(tmp_path / "events.jsonl") as journal:
        run_job(replace(job, epochs=2), "0" * 64, tmp_path, journal)
    reports = [event for event in _events(tmp_path) if isinstance(event, MetricsEvent)]
    told = [event for event in reports if not event.metrics]
    assert len(reports) - len(told) == 3  # two epochs, and the final figures
    steps = reports[-1].step
    assert {event.steps for event in reports} == {steps}
    if kind is _Crowded:
        assert told == []
    else:
        first = range(1, steps // 2)
        assert [(event.epoch, event.step) for event in told] == [
            *((0, step) for step in first),
            *((1, step + steps // 2) for step in first),
        ]
        assert all(event.eta_seconds is not None for event in told)
    verify_files(load_result(tmp_path), tmp_path)


def test_a_job_prints_nothing_that_it_was_not_asked_for(digits: Path) -> None:
    assert _log(digits) == ""


def test_a_finished_job_leaves_its_results_and_nothing_that_looks_like_one(digits: Path) -> None:
    # A slow run leaves checkpoints, which the service removes.
    names = {path.name for path in digits.iterdir()} - {"checkpoints"}
    assert names == {
        *("spec.binpb", "events.jsonl", "pulse", "worker.log", "cpu-time-is-up", REFERENCE_NAME),
        *RESULT_FILES,
    }
    assert [file.path for file in load_result(digits).files] == ["model.onnx"]
    verify_files(load_result(digits), digits)


def test_the_digits_example_reaches_its_accuracy_in_both_runtimes(digits: Path) -> None:
    accuracies = {
        metric.runtime: metric.value
        for metric in load_result(digits).metrics
        if (metric.name, metric.split) == ("accuracy", "test")
    }
    assert set(accuracies) == {"pytorch", "onnxruntime"}
    assert min(accuracies.values()) >= 0.97
    rows = _data(digits).test
    answers = _run(digits, "image", rows.inputs)["probabilities"].argmax(axis=1)
    assert float((answers == rows.targets).mean()) == accuracies["onnxruntime"]


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_the_digits_model_takes_any_batch_and_gives_probabilities(
    digits: Path, batch_size: int
) -> None:
    outputs = _run(digits, "image", _data(digits).test.inputs[:batch_size])
    assert list(outputs) == ["logits", "probabilities"]
    logits, probabilities = outputs["logits"], outputs["probabilities"]
    assert logits.shape == probabilities.shape == (batch_size, 10)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, atol=1e-5)
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    softmax = exponentials / exponentials.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(probabilities, softmax, atol=1e-5)


def test_the_digits_model_carries_labels_and_ranges(digits: Path) -> None:
    metadata = _session(digits).get_modelmeta().custom_metadata_map
    assert metadata["modelrail.task"] == "classification"
    (image,) = json.loads(metadata["modelrail.input_spec"])
    assert (image["name"], image["shape"]) == ("image", ["batch", 8, 8])
    assert image["range"] == [0.0, 16.0]
    logits, probabilities = json.loads(metadata["modelrail.output_spec"])
    assert logits["labels"] == probabilities["labels"] == list("0123456789")
    assert probabilities["range"] == [0.0, 1.0]


def test_the_result_holds_lineage_and_certificate(digits: Path) -> None:
    result = load_result(digits)
    rows = _data(digits)
    assert result.lineage.dataset_sha256 == rows.sha256
    assert result.lineage.seed == 1
    assert {"torch", "onnx", "onnxruntime"} <= set(result.lineage.packages)
    machine, processors, threads = result.lineage.hardware.split(", ")
    assert machine.startswith(platform.machine())
    assert processors == f"{len(os.sched_getaffinity(0))} processors"
    assert threads == "1 thread"
    assert result.certificate.rows == min(256, len(rows.validation))
    assert result.certificate.batch_sizes == (1, 2, 7)
    assert {parity.name for parity in result.certificate.outputs} == {"logits", "probabilities"}
    assert all(parity.max_absolute_difference < 1e-4 for parity in result.certificate.outputs)


def test_the_result_tells_how_the_model_does_on_the_test_rows(digits: Path) -> None:
    evaluation = load_result(digits).evaluation
    assert evaluation is not None
    rows = _data(digits).test
    answers = _run(digits, "image", rows.inputs)["probabilities"].argmax(axis=1)
    matrix = np.zeros((10, 10), int)
    np.add.at(matrix, (rows.targets.astype(int), answers), 1)
    assert np.array(evaluation.confusion).reshape(10, 10).tolist() == matrix.tolist()
    assert evaluation.labels == tuple("0123456789")
    assert evaluation.rows == len(rows)
    assert evaluation.expected_calibration_error < 0.1
    (data_event,) = [event for event in _events(digits) if isinstance(event, DataEvent)]
    assert data_event.summary.parts[2].rows == len(rows)


def test_both_runtimes_tell_the_same_figures(digits: Path) -> None:
    names: dict[str, set[tuple[str, str]]] = {"pytorch": set(), "onnxruntime": set()}
    for metric in load_result(digits).metrics:
        if metric.split != "train":
            names[metric.runtime].add((metric.split, metric.name))
    assert names["pytorch"] == names["onnxruntime"]
    assert ("test", "f1") in names["pytorch"]


def test_two_runs_of_one_specification_make_the_same_file(
    line: Path, start: Start, tmp_path: Path
) -> None:
    assert start(_example("linear")).wait(SECONDS) == 0, _log(tmp_path)
    assert load_result(tmp_path).files == load_result(line).files


@pytest.mark.slow
def test_a_job_that_was_killed_goes_on_and_makes_the_same_file(
    digits: Path, start: Start, tmp_path: Path
) -> None:
    spec = _example("digits")
    spec.checkpoint_every_steps = 7
    worker = start(spec)
    _wait_for(tmp_path, MetricsEvent)
    worker.kill()
    assert worker.wait(SECONDS) == -signal.SIGKILL
    assert start(spec).wait(SECONDS) == 0, _log(tmp_path)
    assert load_result(tmp_path).files == load_result(digits).files
    lines = [event.text for event in _events(tmp_path) if isinstance(event, LogEvent)]
    (step,) = (
        int(text.split("after step ")[1].split(",")[0])
        for text in lines
        if text.startswith("goes on from the checkpoint after step ")
    )
    kept = [event for event in _events(tmp_path) if isinstance(event, CheckpointEvent)]
    assert [event.step for event in kept] == list(range(7, kept[-1].step + 1, 7))
    assert all(event.since == (step if event.step > step else 0) for event in kept)


def test_sigterm_in_the_middle_of_training_leaves_a_checkpoint_that_ends_in_the_same_file(
    digits: Path, start: Start, tmp_path: Path
) -> None:
    spec = _example("digits")
    worker = start(spec)
    _wait_for(tmp_path, MetricsEvent)
    worker.terminate()
    assert worker.wait(SECONDS) == EXIT_STOPPED
    assert RESULT_FILES.isdisjoint(path.name for path in tmp_path.iterdir())
    stopped = _events(tmp_path)[-1]
    assert isinstance(stopped, StoppedEvent)
    (checkpoint,) = (tmp_path / "checkpoints").iterdir()
    assert checkpoint.stem == f"step-{stopped.step:012d}"
    assert start(spec).wait(SECONDS) == 0, _log(tmp_path)
    assert load_result(tmp_path).files == load_result(digits).files


def test_sigterm_before_training_ends_the_process_at_once(start: Start, tmp_path: Path) -> None:
    worker = start(_example("linear"))
    _wait_for(tmp_path, PhaseEvent)
    worker.terminate()
    assert worker.wait(5.0) == -signal.SIGTERM
    assert not (tmp_path / "checkpoints").exists()


def test_a_worker_that_is_given_up_shows_what_its_threads_do_and_ends(
    start: Start, tmp_path: Path
) -> None:
    spec = _example("digits")
    spec.epochs = 1000
    worker = start(spec)
    _wait_for(tmp_path, MetricsEvent)
    assert last_beat(tmp_path / PULSE_NAME) is not None
    worker.send_signal(SHOW_AND_END)
    assert worker.wait(SECONDS) == -SHOW_AND_END
    log = _log(tmp_path)
    assert "most recent call first" in log
    assert "in fit" in log
    assert RESULT_FILES.isdisjoint(path.name for path in tmp_path.iterdir())


def test_a_parent_that_ignored_sigterm_does_not_make_the_worker_deaf(
    start: Start, tmp_path: Path
) -> None:
    spec = _example("linear")
    spec.epochs = 100_000
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        worker = start(spec)
    finally:
        signal.signal(signal.SIGTERM, before)
    _wait_for(tmp_path, PhaseEvent)
    worker.terminate()
    assert worker.wait(5.0) == -signal.SIGTERM


def test_a_loss_that_is_no_number_fails_the_job_with_its_reason(
    start: Start, tmp_path: Path
) -> None:
    spec = _example("linear")
    spec.optimizer.sgd.learning_rate = 1e6
    assert start(spec).wait(SECONDS) == EXIT_FAILED
    failure = _failure(tmp_path)
    assert failure.reason is FailureReason.NAN_LOSS
    assert "epoch 1" in failure.message


def test_data_that_does_not_fit_into_floats_fails_the_job_with_its_reason(
    start: Start, tmp_path: Path
) -> None:
    spec = _example("linear")
    spec.dataset.line.slope = 1e300
    assert start(spec).wait(SECONDS) == EXIT_FAILED
    assert _failure(tmp_path) == FailedEvent(
        FailureReason.DATA,
        f"data set line y = 1e+300x + 1, {spec.dataset.line.points} points: "
        "expected numbers that fit into 32-bit floats",
    )


def test_a_wrong_specification_fails_the_job_and_names_every_field(
    start: Start, tmp_path: Path
) -> None:
    spec = _example("linear")
    spec.epochs = 0
    spec.dataset.line.points = 1
    assert start(spec).wait(SECONDS) == EXIT_FAILED
    failure = _failure(tmp_path)
    assert failure.reason is FailureReason.DATA
    assert "epochs: " in failure.message
    assert "dataset.line.points: " in failure.message


def test_a_specification_that_is_no_message_is_a_defect_in_the_journal(
    start: Start, tmp_path: Path
) -> None:
    other = struct_pb2.Struct()  # its bytes are not those of a specification
    other["name"] = 1.0
    worker = start(other)
    assert worker.wait(SECONDS) == EXIT_DEFECT
    failure = _failure(tmp_path)
    assert failure.reason is FailureReason.INTERNAL
    assert failure.message.startswith("a defect of the trainer: DecodeError: ")
    assert re.search(
        r"\n  modelrail_trainer\.worker\.__main__:\d+ in _specification", failure.message
    )
    assert str(tmp_path) not in failure.message
    assert "Traceback" in _log(tmp_path)
    lines, _ = read_output(tmp_path / "worker.log", OutputMark(), ended=True)
    assert lines == []


def test_a_full_disk_leaves_no_result(start: Start, tmp_path: Path) -> None:
    # The journal of this job fits below the limit, the model does not.
    spec = _example("digits")
    spec.epochs = 1
    assert start(spec, file_size_bytes=32 * 1024).wait(SECONDS) == EXIT_DEFECT
    assert not (tmp_path / "result.json").exists()
    assert not list(tmp_path.glob("result*"))
    failure = _failure(tmp_path)
    assert failure.reason is FailureReason.INTERNAL
    assert "File too large" in failure.message
    assert "OSError: [Errno 27]" in _log(tmp_path)


def test_a_disk_too_full_for_the_journal_leaves_whole_lines_and_no_result(
    start: Start, tmp_path: Path
) -> None:
    worker = start(_example("linear"), file_size_bytes=4 * 1024)
    assert worker.wait(SECONDS) not in {0, EXIT_FAILED}
    assert not list(tmp_path.glob("result*"))
    journal = tmp_path / "events.jsonl"
    events, offset = read_events(journal, 0)
    assert offset == journal.stat().st_size > 3 * 1024
    assert any(isinstance(event, MetricsEvent) for event in events)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_the_rows_program_writes_the_rows_of_the_trainer(
    digits: Path, tmp_path: Path, split: str
) -> None:
    output = tmp_path / "rows.npz"
    finished = _rows(digits / "spec.binpb", split, output)
    assert finished.returncode == 0, finished.stderr
    part = getattr(_data(digits), split)
    with np.load(output, allow_pickle=False) as arrays:
        assert set(arrays) == {"inputs", "targets"}
        assert (arrays["inputs"].dtype, arrays["targets"].dtype) == (np.float32, np.int64)
        np.testing.assert_array_equal(arrays["inputs"], part.inputs)
        np.testing.assert_array_equal(arrays["targets"], part.targets)


def test_the_rows_program_says_what_is_wrong_and_writes_nothing(tmp_path: Path) -> None:
    spec = _example("digits")
    spec.dataset.bundled = "mnist"
    path = tmp_path / "spec.binpb"
    path.write_bytes(spec.SerializeToString())
    finished = _rows(path, "test", tmp_path / "rows.npz")
    assert finished.returncode == 1
    assert b"mnist" in finished.stderr
    assert b"Traceback" not in finished.stderr
    assert not (tmp_path / "rows.npz").exists()


def _start(spec: Message, directory: Path) -> Worker:
    """Starts a worker as the service does, but with warnings as errors."""
    (directory / "spec.binpb").write_bytes(spec.SerializeToString())
    command = [sys.executable, "-W", "error", "-m", "modelrail_trainer.worker"]
    with (directory / "worker.log").open("wb") as log:
        return subprocess.Popen(
            [*command, "--job-directory", str(directory)],
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _finished(example: str, directory: Path) -> Path:
    worker = _start(_example(example), directory)
    try:
        assert worker.wait(SECONDS) == 0, _log(directory)
    finally:
        worker.kill()
        worker.wait()
    return directory


def _example(name: str) -> pb.TrainingJobSpec:
    content = yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text())
    return json_format.ParseDict(content, pb.TrainingJobSpec())


def _data(directory: Path) -> TrainingData:
    message = pb.TrainingJobSpec.FromString((directory / "spec.binpb").read_bytes())
    return data.load(with_defaults(spec_from_pb(message)))


def _session(directory: Path) -> onnxruntime.InferenceSession:
    path = directory / "model.onnx"
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def _run(directory: Path, model_input: str, rows: Inputs) -> dict[str, npt.NDArray[np.float32]]:
    session = _session(directory)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {model_input: rows}), strict=True))


def _rows(spec: Path, split: str, output: Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "modelrail_trainer.worker.rows",
            f"--specification={spec}",
            f"--split={split}",
            f"--output={output}",
        ],
        check=False,
        capture_output=True,
        timeout=SECONDS,
    )


def _events(directory: Path) -> list[JournalEvent]:
    return read_events(directory / "events.jsonl", 0)[0]


def _lines(directory: Path, beginning: str) -> list[str]:
    texts = [event.text for event in _events(directory) if isinstance(event, LogEvent)]
    return [text for text in texts if text.startswith(beginning)]


def _failure(directory: Path) -> FailedEvent:
    """The last word of a failed job, which must have left no result."""
    last = _events(directory)[-1]
    assert isinstance(last, FailedEvent), last
    assert not list(directory.glob("result*"))
    return last


def _log(directory: Path) -> str:
    return (directory / "worker.log").read_text(errors="replace")


def _wait_for(directory: Path, kind: type[JournalEvent]) -> None:
    deadline = time.monotonic() + SECONDS
    while not any(isinstance(event, kind) for event in _events(directory)):
        assert time.monotonic() < deadline, _log(directory)
        time.sleep(0.02)  # a poll of another process's file, not a guess at its speed
