"""A job from beginning to end: read the data, train, evaluate, export, pass the gate, hand over."""

from __future__ import annotations

import math
import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch

from modelrail_trainer.artifact import (
    BARE_NAME,
    CHECKPOINTS_NAME,
    MODEL_NAME,
    ONNX_MEDIA_TYPE,
    Lineage,
    TrainingResult,
    describe_file,
    save_result,
)
from modelrail_trainer.journal import JournalWriter, Metric, MetricsEvent, Phase, PhaseEvent
from modelrail_trainer.rules.custom import is_import
from modelrail_trainer.spec import CustomModel, LinearModel, LineDataset, Task, TrainingJobSpec
from modelrail_trainer.validation import validate
from modelrail_trainer.worker.custom.code import UserCode
from modelrail_trainer.worker.data import load
from modelrail_trainer.worker.export import exported_module, signature_of
from modelrail_trainer.worker.failure import DataError, NanLoss
from modelrail_trainer.worker.ladder import export_and_prove
from modelrail_trainer.worker.language.samples import samples
from modelrail_trainer.worker.learning.checkpoint import Checkpoints
from modelrail_trainer.worker.learning.evaluate import Predict, as_metrics, evaluate, torch_predict
from modelrail_trainer.worker.learning.loop import (
    Epoch,
    Trained,
    fit,
    initial_network,
    untrained,
)
from modelrail_trainer.worker.progress import made_progress
from modelrail_trainer.worker.training_data import TrainingData

_PACKAGES = (
    "modelrail",
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "pyarrow",
    "scikit-learn",
    "torch",
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

    Raises:
        JobFailure: The job cannot succeed; nothing is handed over.
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
        data = data.head(spec.batch_size)
        spec = replace(spec, epochs=min(spec.epochs, 1), checkpoint_every_steps=1)
    whose: AbstractContextManager[None] = nullcontext()
    if isinstance(spec.model, CustomModel) and code is not None:
        whose = code.blamed(spec.model.entry_point)
    with whose:
        _train_and_prove(spec, data, directory, journal, spec_sha256=spec_sha256, code=code)


def _train_and_prove(
    spec: TrainingJobSpec,
    data: TrainingData,
    directory: Path,
    journal: JournalWriter,
    *,
    spec_sha256: str,
    code: UserCode | None,
) -> None:
    journal.write(PhaseEvent(Phase.RUNNING))
    made_progress()
    network = initial_network(spec, data, code)
    sources = code.digests() if code is not None else {}
    checkpoints = Checkpoints(
        directory / CHECKPOINTS_NAME,
        {
            "specification": spec_sha256,
            "data": data.sha256,
            "torch": str(torch.__version__),
            "processors": str(len(os.sched_getaffinity(0))),
            **sources,
        },
        every_steps=spec.checkpoint_every_steps,
    )
    if is_import(spec):
        trained = untrained(network)
        journal.log("imported, not trained: the weights that the model function gave are exported")
    else:
        report = partial(_report, spec=spec, journal=journal)
        trained = fit(spec, data, report, checkpoints, journal.log, network=network)
        journal.log(_end_of_training(trained, spec))
    predict = torch_predict(network)
    figures = {
        "train": evaluate(predict, data.train, data.task),
        "validation": evaluate(predict, data.validation, data.task),
        "test": evaluate(predict, data.test, data.task),
    }
    metrics: tuple[Metric, ...] = ()
    for split, values in figures.items():
        for name, value in values.items():
            if not math.isfinite(value):
                raise NanLoss(f"the {split} {name} of the trained model is {value}")
        metrics += as_metrics(values, split=split, epoch=0, runtime="pytorch")
    metrics += _learned_line(spec, data, predict, journal)
    if data.task is Task.LANGUAGE:
        for text in samples(network, data.facts.row_shape[0], seed=spec.seed):
            journal.log(f"sample: {text}")

    journal.write(PhaseEvent(Phase.EXPORTING))
    made_progress()
    signature = signature_of(data)
    module = exported_module(network, data.task)
    network_path = directory / (MODEL_NAME if data.raw is None else BARE_NAME)
    proven = export_and_prove(module, signature, data, figures, path=network_path, log=journal.log)
    signature, certificate = proven.signature, proven.certificate
    metrics += proven.metrics
    files = [MODEL_NAME]
    if data.raw is not None:
        signature, parity = data.raw.export(proven.model, signature, module, directory / MODEL_NAME)
        certificate = certificate.with_outputs(parity)
        files.append(BARE_NAME)
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
            rows_per_second=0.0,
            metrics=metrics,
        )
    )
    if code is not None:
        sources = code.digests()  # the module may have imported more while it ran
    save_result(
        TrainingResult(
            files=tuple(describe_file(directory, name, ONNX_MEDIA_TYPE) for name in files),
            signature=signature,
            metrics=metrics,
            lineage=Lineage(
                dataset=f"{data.name} (imported, not trained)" if is_import(spec) else data.name,
                dataset_sha256=data.sha256,
                spec_sha256=spec_sha256,
                seed=spec.seed,
                packages={name: version(name) for name in _PACKAGES} | sources,
            ),
            certificate=certificate,
        ),
        directory,
    )


def _report(epoch: Epoch, spec: TrainingJobSpec, journal: JournalWriter) -> None:
    journal.write(
        MetricsEvent(
            epoch=epoch.number,
            epochs=spec.epochs,
            step=epoch.step,
            rows_per_second=epoch.rows_per_second,
            metrics=(
                *as_metrics(
                    {"loss": epoch.train_loss}, split="train", epoch=epoch.number, runtime="pytorch"
                ),
                *as_metrics(
                    epoch.validation, split="validation", epoch=epoch.number, runtime="pytorch"
                ),
            ),
        )
    )
    if epoch.number in (1, spec.epochs) or epoch.number % spec.log_every_epochs == 0:
        journal.log(
            f"epoch {epoch.number}/{spec.epochs}  loss {epoch.train_loss:.6g}  "
            f"validation {_figures(epoch.validation)}"
        )


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
