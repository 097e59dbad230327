"""A job from beginning to end: read the data, train, evaluate, export, pass the gate, hand over."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import torch

from modelrail_trainer.failure import DataError, NanLoss
from modelrail_trainer.handover.artifact import (
    BARE_NAME,
    CHECKPOINTS_NAME,
    MODEL_NAME,
    ONNX_MEDIA_TYPE,
    Lineage,
    TrainingResult,
    describe_file,
    save_result,
)
from modelrail_trainer.handover.journal import (
    CheckpointEvent,
    DataEvent,
    JournalWriter,
    Metric,
    MetricsEvent,
    Phase,
    PhaseEvent,
)
from modelrail_trainer.rules.custom import is_import
from modelrail_trainer.rules.validation import validate
from modelrail_trainer.spec import CustomModel, LinearModel, LineDataset, Task, TrainingJobSpec
from modelrail_trainer.worker.custom.code import UserCode
from modelrail_trainer.worker.data import load
from modelrail_trainer.worker.evaluation.detail import detail_of
from modelrail_trainer.worker.evaluation.summary import summary_of
from modelrail_trainer.worker.export.exporter import exported_module, signature_of
from modelrail_trainer.worker.export.ladder import export_and_prove
from modelrail_trainer.worker.export.reference import save_reference
from modelrail_trainer.worker.hardware import hardware_of
from modelrail_trainer.worker.language.samples import samples
from modelrail_trainer.worker.learning.checkpoint import Checkpoints
from modelrail_trainer.worker.learning.device import described
from modelrail_trainer.worker.learning.evaluate import Predict, as_metrics, evaluate, torch_predict
from modelrail_trainer.worker.learning.initialization import initial_network
from modelrail_trainer.worker.learning.loop import Epoch, Interim, Trained, fit, untrained
from modelrail_trainer.worker.learning.replicas import ALONE, Replicas
from modelrail_trainer.worker.learning.stop import StopRequest
from modelrail_trainer.worker.progress import made_progress
from modelrail_trainer.worker.training_data import TrainingData

_PACKAGES = (
    "modelrail",
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "pillow",
    "pyarrow",
    "scikit-learn",
    "torch",
    "torchmetrics",
)

_DATA_FOLDER = "data"
DRY_RUN_ROWS = 10_000
"""Rows of files that a dry run uses."""


def run_job(
    spec: TrainingJobSpec,
    spec_sha256: str,
    directory: Path,
    journal: JournalWriter,
    *,
    code: UserCode | None = None,
    dry_run: bool = False,
    replicas: Replicas = ALONE,
) -> None:
    """Runs a job and leaves `model.onnx` and `result.json` in the directory.

    Where raw values are encoded `bare.onnx` as well, the network without the encoding.

    Args:
        spec: With defaults applied, and valid.
        spec_sha256: Digest of the specification, for the lineage.
        directory: The job's own.
        journal: Gets phases, metrics and log lines.
        code: Where functions of the job's owner are; None: nowhere.
        dry_run: Makes one step on some of the rows, and all that comes after with its result.
        replicas: The processes that train together; this is the first of them.

    Raises:
        JobFailure: The job cannot succeed; nothing is handed over.
        Stopped: SIGTERM came while it trained.
    """
    max_rows = DRY_RUN_ROWS if dry_run else None
    data = load(spec, directory / _DATA_FOLDER, max_rows=max_rows, code=code)
    journal.log(
        f"data set {data.name}: {len(data.train)} training, {len(data.validation)} validation, "
        f"{len(data.test)} test rows"
    )
    for remark in data.raw.remarks() if data.raw else ():
        journal.log(remark)
    # Of files the shape of the rows and the classes are known only now.
    if violations := validate(spec, data.facts):
        raise DataError("; ".join(f"{field}: {what}" for field, what in violations))

    if dry_run:
        data = data.sample(spec.batch_size)
        spec = _of_one_step(spec)
    replicas.share_data(data)
    journal.write(DataEvent(summary_of(data)))
    with _blamed(spec, code):
        _train_and_prove(
            spec, data, directory, journal, spec_sha256=spec_sha256, code=code, replicas=replicas
        )


def _train_and_prove(
    spec: TrainingJobSpec,
    data: TrainingData,
    directory: Path,
    journal: JournalWriter,
    *,
    spec_sha256: str,
    code: UserCode | None,
    replicas: Replicas,
) -> None:
    journal.write(PhaseEvent(Phase.RUNNING))
    made_progress()
    network = initial_network(spec, data, code, replicas)
    if is_import(spec):
        trained = untrained(network)
        journal.log("imported, not trained: the weights that the model function gave are exported")
    else:
        if replicas.count > 1:
            journal.log(
                f"{replicas.count} processes train together, each on its part of every batch"
            )
        journal.log(f"trains on {described(replicas.device)}")
        sources = replicas.told(_sources(code))
        stop = StopRequest()
        with stop.heeded():
            trained = fit(
                spec,
                data,
                lambda epoch: _report(epoch, spec, journal),
                _checkpoints(
                    *(spec, spec_sha256, data, directory, sources),
                    device=replicas.device,
                    on_saved=lambda step, since: journal.write(CheckpointEvent(step, since)),
                ),
                journal.log,
                on_interim=lambda interim: _report_interim(interim, spec, journal),
                network=network,
                replicas=replicas,
                stop=stop,
            )
        journal.log(_end_of_training(trained, spec))
    predict = torch_predict(network)
    # What a model of language gets wrong is told by its figures and samples.
    detail = None if data.task is Task.LANGUAGE else detail_of(data)
    figures = {
        "train": evaluate(predict, data.train, data.task),
        "validation": evaluate(predict, data.validation, data.task),
        "test": evaluate(predict, data.test, data.task, *([detail] if detail else ())),
    }
    metrics: tuple[Metric, ...] = ()
    for split, values in figures.items():
        for name, value in values.items():
            if not math.isfinite(value):
                raise NanLoss(f"the {split} {name} of the trained model is {value}")
        metrics += as_metrics(values, split=split, epoch=0, runtime="pytorch")
    metrics += _learned_line(spec, data, predict, journal)
    network.cpu()  # where it is exported, and compared with ONNX Runtime
    if data.task is Task.LANGUAGE:
        for text in samples(network, data.facts.row_shape[0], seed=spec.seed):
            journal.log(f"sample: {text}")

    journal.write(PhaseEvent(Phase.EXPORTING))
    made_progress()
    signature = signature_of(data)
    module = exported_module(network, data.task)
    proven = export_and_prove(
        module, signature, data, figures, directory=directory, log=journal.log
    )
    files, certificate = [*proven.signatures], proven.certificate
    metrics += proven.metrics
    worst = ", ".join(
        f"{output.name} {output.max_absolute_difference:.1e}" for output in certificate.outputs
    )
    size_bytes = sum((directory / name).stat().st_size for name in files)
    journal.log(
        f"export passed the gate: opset {certificate.opset}, {size_bytes} bytes, "
        f"largest difference from PyTorch on {certificate.rows} rows: {worst}"
    )
    journal.log("test " + _figures(figures["test"]))
    journal.write(
        MetricsEvent(
            epoch=trained.epochs,
            epochs=spec.epochs,
            step=trained.step,
            steps=trained.steps,
            rows_per_second=0.0,
            metrics=metrics,
        )
    )
    save_reference(proven.reference, directory)
    save_result(
        TrainingResult(
            files=tuple(describe_file(directory, name, ONNX_MEDIA_TYPE) for name in files),
            signature=proven.signatures[MODEL_NAME],
            metrics=metrics,
            lineage=Lineage(
                dataset=f"{data.name} (imported, not trained)" if is_import(spec) else data.name,
                dataset_sha256=data.sha256,
                spec_sha256=spec_sha256,
                seed=spec.seed,
                packages={name: version(name) for name in _PACKAGES}
                | ({"cuda": str(torch.version.cuda)} if replicas.device.type == "cuda" else {})
                | _sources(code),
                hardware=hardware_of(replicas.device, replicas.count),
            ),
            certificate=certificate,
            evaluation=detail.evaluation() if detail else None,
            bare_signature=proven.signatures.get(BARE_NAME),
        ),
        directory,
    )


def assist_job(
    spec: TrainingJobSpec,
    spec_sha256: str,
    directory: Path,
    replicas: Replicas,
    *,
    code: UserCode | None = None,
    dry_run: bool = False,
) -> None:
    """Trains beside the first process of a job, which tells and keeps everything.

    Args:
        spec: With defaults applied, and valid.
        spec_sha256: Digest of the specification.
        directory: The job's own.
        replicas: The processes that train together.
        code: Where functions of the job's owner are; None: nowhere.
        dry_run: Whether the first process makes one step.

    Raises:
        JobFailure: As the first process says too.
        Stopped: The first process has stopped.
    """
    if dry_run:
        spec = _of_one_step(spec)
    data = replicas.share_data(None)
    if is_import(spec):
        return
    network = initial_network(spec, data, code, replicas)
    # Not all of them have imported what makes the data.
    sources: dict[str, str] = replicas.told({})
    checkpoints = _checkpoints(spec, spec_sha256, data, directory, sources, device=replicas.device)
    # The first process says when to stop.
    with _blamed(spec, code), StopRequest().heeded():
        fit(spec, data, lambda epoch: None, checkpoints, network=network, replicas=replicas)


def _blamed(spec: TrainingJobSpec, code: UserCode | None) -> AbstractContextManager[None]:
    """Returns a context in which what a model of the owner's does wrong is its own fault."""
    if isinstance(spec.model, CustomModel) and code is not None:
        return code.blamed(spec.model.entry_point)
    return nullcontext()


def _of_one_step(spec: TrainingJobSpec) -> TrainingJobSpec:
    """Returns what a dry run trains, on as many rows as a batch has."""
    return replace(spec, epochs=min(spec.epochs, 1), checkpoint_every_steps=1)


def _sources(code: UserCode | None) -> dict[str, str]:
    return {} if code is None else code.digests()


def _checkpoints(
    spec: TrainingJobSpec,
    spec_sha256: str,
    data: TrainingData,
    directory: Path,
    sources: dict[str, str],
    *,
    device: torch.device,
    on_saved: Callable[[int, int], None] = lambda step, since: None,
) -> Checkpoints:
    # What one kind of device began another would end otherwise.
    where = {} if device.type == "cpu" else {"device": device.type}
    return Checkpoints(
        directory / CHECKPOINTS_NAME,
        {
            "specification": spec_sha256,
            "data": data.sha256,
            "torch": str(torch.__version__),
            "processors": str(len(os.sched_getaffinity(0))),
            **where,
            **sources,
        },
        every_steps=spec.checkpoint_every_steps,
        on_saved=on_saved,
    )


def _report(epoch: Epoch, spec: TrainingJobSpec, journal: JournalWriter) -> None:
    journal.write(
        MetricsEvent(
            epoch=epoch.number,
            epochs=spec.epochs,
            step=epoch.step,
            steps=epoch.steps,
            rows_per_second=epoch.rows_per_second,
            metrics=tuple(
                metric
                for split, figures in (
                    ("train", {"loss": epoch.train_loss}),
                    ("validation", epoch.validation),
                )
                for metric in as_metrics(
                    figures, split=split, epoch=epoch.number, runtime="pytorch", step=epoch.step
                )
            ),
            eta_seconds=epoch.eta_seconds,
        )
    )
    if epoch.number in (1, spec.epochs) or epoch.number % spec.log_every_epochs == 0:
        journal.log(
            f"epoch {epoch.number}/{spec.epochs}  loss {epoch.train_loss:.6g}  "
            f"validation {_figures(epoch.validation)}"
        )


def _report_interim(interim: Interim, spec: TrainingJobSpec, journal: JournalWriter) -> None:
    event = MetricsEvent(
        epoch=interim.epoch - 1,
        epochs=spec.epochs,
        step=interim.step,
        steps=interim.steps,
        rows_per_second=interim.rows_per_second,
        metrics=as_metrics(
            interim.figures,
            split="validation",
            epoch=interim.epoch,
            runtime="pytorch",
            step=interim.step,
        ),
        eta_seconds=interim.eta_seconds,
    )
    # Without figures nothing is lost with it, and training goes on while the disk is full.
    with nullcontext() if interim.figures else suppress(OSError):
        journal.write(event)


def _end_of_training(trained: Trained, spec: TrainingJobSpec) -> str:
    selection = spec.selection
    reason = (
        f"{selection.patience_epochs} epochs in a row were not better"
        if trained.epochs < spec.epochs
        else "all epochs are done"
    )
    kept = "last" if selection.keep_last else "best"
    return (
        f"training ended after epoch {trained.epochs}/{spec.epochs}: {reason}; "
        f"best epoch {trained.best_epoch}, validation {selection.metric} "
        f"{trained.best_figure:.6g}; the {kept} epoch's weights are exported"
    )


def _figures(values: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.6g}" for name, value in values.items() if name != "mse")


def _learned_line(
    spec: TrainingJobSpec, data: TrainingData, predict: Predict, journal: JournalWriter
) -> tuple[Metric, ...]:
    """Tells the line that a linear model learned, in the unit of the raw data."""
    if not (isinstance(spec.dataset, LineDataset) and isinstance(spec.model, LinearModel)):
        return ()
    # Preprocessing is affine too, so two points give the slope and intercept of the whole chain.
    zero_and_one = data.train.inputs[:2] * 0
    zero_and_one[1] = 1
    at_zero, at_one = (float(value) for value in predict(zero_and_one)[:, 0])
    learned = {"weight": at_one - at_zero, "bias": at_zero}
    journal.log(f"learned y = {learned['weight']:.6f} x + {learned['bias']:.6f}")
    return as_metrics(learned, split="train", epoch=0, runtime="pytorch")
