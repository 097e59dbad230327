"""Export to ONNX: one self-contained file with nothing of this machine in it."""

from __future__ import annotations

import logging
import re
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
import torch
from torch import nn

from modelrail_trainer.failure import ExportFailed
from modelrail_trainer.failure.redaction import without_directories
from modelrail_trainer.handover.artifact import BATCH, LENGTH, Signature, TensorSpec, ValueRange
from modelrail_trainer.spec import Task
from modelrail_trainer.worker.export.model_file import check_batch_axis, describe, strip
from modelrail_trainer.worker.network import Classifier
from modelrail_trainer.worker.training_data import TrainingData

# Two rows or more: an axis of size 1 could be taken for one that broadcasts.
_EXAMPLE_ROWS = 3
# Apart from the rows, so that the two axes are not taken for one.
_EXAMPLE_LENGTH = 5
_REGISTRATION = "torch.onnx._internal.exporter._registration"
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_FRAME = re.compile(r'\s*File "([^"]*)", line \d+')
_MAX_REPORT_LINES = 100
_MAX_REPORT_CHARACTERS = 300
_DATATYPES = {"FP32": torch.float32, "INT64": torch.int64, "UINT8": torch.uint8}
_DATATYPE_OF = {"float32": "FP32", "int64": "INT64", "uint8": "UINT8"}


def exported_module(network: nn.Module, task: Task) -> nn.Module:
    """Returns the module whose outputs the graph has.

    They are logits and probabilities, y, or for language logits: their probabilities would be as
    large once more.
    """
    return (Classifier(network) if task is Task.CLASSIFICATION else network).eval()


def signature_of(data: TrainingData) -> Signature:
    """Returns the signature that the exported graph must have."""
    rows = data.train.inputs
    model_input = TensorSpec(
        name=data.input_name,
        datatype=_DATATYPE_OF[rows.dtype.name],
        shape=(BATCH, LENGTH) if data.tokens else (BATCH, *rows.shape[1:]),
        meaning=data.input_meaning,
        value_range=ValueRange(0.0, data.tokens - 1.0)
        if data.tokens
        else ValueRange(float(rows.min()), float(rows.max())),
    )
    if data.task is Task.LANGUAGE:
        scores = TensorSpec(
            name="logits",
            datatype="FP32",
            shape=(BATCH, LENGTH, data.outputs),
            meaning="score of each byte as the next one",
        )
        return Signature((model_input,), (scores,))
    shape = (BATCH, data.outputs)
    if data.task is Task.REGRESSION:
        value = TensorSpec(name="y", datatype="FP32", shape=shape, meaning="predicted value")
        return Signature((model_input,), (value,))
    logits = TensorSpec(
        name="logits", datatype="FP32", shape=shape, meaning="class score", labels=data.labels
    )
    probabilities = TensorSpec(
        name="probabilities",
        datatype="FP32",
        shape=shape,
        meaning="class probability",
        value_range=ValueRange(0.0, 1.0),
        labels=data.labels,
    )
    return Signature((model_input,), (logits, probabilities))


def export(
    module: nn.Module, signature: Signature, task: Task, *, optimize: bool = True
) -> onnx.ModelProto:
    """Exports a module that maps one input to the signature's outputs.

    Args:
        module: In evaluation mode.
        signature: What the graph must look like; a first size that is a number fixes the batch.
        task: For the file's description of itself.
        optimize: Whether the exporter folds constants and fuses operators.

    Raises:
        ExportFailed: The exporter gave up, or the batch axis is not dynamic on every input and
        output.
    """
    try:
        program = _program(module, signature, optimize=optimize)
    except Exception as error:  # the exporter's own tree, and whatever its passes raise
        raise ExportFailed(f"the exporter failed: {_reason(error)}") from error
    if program is None:
        raise ExportFailed("the exporter made nothing")
    model: onnx.ModelProto = program.model_proto
    strip(model)
    check_batch_axis(model, signature.inputs[0].shape[0])
    model.producer_name = "modelrail"
    describe(model, signature, task)
    return model


def exporter_report(module: nn.Module, signature: Signature, directory: Path) -> list[str]:
    """Returns what the exporter itself reports of a module that it cannot export.

    They are the lines of its report: how far it came, the errors on each of its ways and its hints.
    PyTorch's own frames are left out, and so are paths and source.

    Args:
        module: In evaluation mode.
        signature: What its graph should look like.
        directory: For the exporter's files, which are gone afterwards.
    """
    with TemporaryDirectory(dir=directory) as folder:
        try:
            _program(module, signature, optimize=True, reports=folder)
        except Exception:  # noqa: BLE001  # as in `export`
            found = [path.read_text("utf-8") for path in Path(folder).glob("*.md")]
            return condensed("\n".join(found))
    return []  # what is wrong came after it


def _program(
    module: nn.Module, signature: Signature, *, optimize: bool, reports: str | None = None
) -> torch.onnx.ONNXProgram | None:
    (model_input,) = signature.inputs
    sizes = {BATCH: _EXAMPLE_ROWS, LENGTH: _EXAMPLE_LENGTH}
    example = torch.zeros(
        [size if isinstance(size, int) else sizes[size] for size in model_input.shape],
        dtype=_DATATYPES[model_input.datatype],
    )
    dynamic = {axis: size for axis, size in enumerate(model_input.shape) if isinstance(size, str)}
    with warnings.catch_warnings():
        # torch 2.13 uses a name of its own that it has deprecated; nothing of ours is meant.
        warnings.filterwarnings("ignore", r".*LeafSpec.* is deprecated", FutureWarning)
        # It says of each job that operators of torchvision are not there, which no job asked for.
        logging.getLogger(_REGISTRATION).setLevel(logging.ERROR)
        return torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            external_data=False,
            input_names=[model_input.name],
            output_names=[output.name for output in signature.outputs],
            dynamic_shapes=(dynamic,),
            optimize=optimize,
            verbose=False,
            report=reports is not None,
            artifacts_dir=reports or ".",
        )


def condensed(report: str) -> list[str]:
    """Returns the lines of a report of the exporter that say something about the module."""
    lines: list[str] = []
    in_frame = False
    for line in _COLOURS.sub("", report).splitlines():
        text = line.rstrip()
        if frame := _FRAME.match(text):
            in_frame = True  # what follows is its source
            if "site-packages" in frame[1]:
                continue
        elif in_frame and text and text[0] == " ":
            continue
        else:
            in_frame = False
            # Nobody who reads a job's log sets variables of PyTorch.
            if not text or text.startswith(("```", "Traceback")) or "TORCH" in text:
                continue
        lines.append(without_directories(text.partition(", code: ")[0])[:_MAX_REPORT_CHARACTERS])
    return lines[:_MAX_REPORT_LINES]


def _reason(error: Exception) -> str:
    # The exporter's own error only says in which of its steps it failed; the cause says at what.
    root = error.__cause__ or error
    return f"{type(root).__name__}: {' '.join(str(root).split())[:500] or 'no message'}"
