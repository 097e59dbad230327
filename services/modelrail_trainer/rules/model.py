"""Rules about architectures, and about what each can be trained on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from modelrail_trainer.rules.violation import Violation, nothing_set, real, whole, widths
from modelrail_trainer.spec import (
    CnnModel,
    DatasetFacts,
    LinearModel,
    MlpModel,
    TrainingJobSpec,
    body_outputs,
    parameter_count,
)

MAX_UNITS = 65_536
MAX_LAYERS = 16
MAX_CHANNELS = 4_096
MAX_BLOCKS = 8
# 4 bytes each: the ONNX file stays a single one, well below protobuf's limit of 2 GiB.
MAX_PARAMETERS = 250_000_000


def check_model(spec: TrainingJobSpec, facts: DatasetFacts | None) -> Iterator[Violation]:
    """Finds what is wrong with `model`."""
    wrong: list[Violation] = []
    match spec.model:
        case None:
            wrong.append(nothing_set("model", "linear", "mlp", "cnn"))
        case LinearModel():
            pass
        case MlpModel(hidden_units=hidden):
            wrong += widths("model.mlp.hidden_units", hidden, "layers", MAX_LAYERS, MAX_UNITS)
        case CnnModel() as cnn:
            wrong += widths("model.cnn.channels", cnn.channels, "blocks", MAX_BLOCKS, MAX_CHANNELS)
            wrong += whole("model.cnn.hidden_units", cnn.hidden_units, 1, MAX_UNITS)
            wrong += real(
                "model.cnn.dropout", cnn.dropout, "a probability in [0, 1)", least=0.0, below=1.0
            )
            if facts is not None:
                wrong += _check_image(cnn, facts)
    yield from wrong
    if facts is not None and not wrong:
        outputs = body_outputs(spec.loss, facts.outputs)
        parameters = parameter_count(spec.model, replace(facts, outputs=outputs))
        if parameters > MAX_PARAMETERS:
            yield Violation(
                "model",
                f"expected at most {MAX_PARAMETERS} weights, so that the ONNX file stays a single "
                f"one; got {parameters}",
            )


def _check_image(cnn: CnnModel, facts: DatasetFacts) -> Iterator[Violation]:
    if len(facts.row_shape) != 2:
        yield Violation(
            "model.cnn",
            f"expected a data set of images, got rows of shape {list(facts.row_shape)}",
        )
        return
    # Each block halves the image, rounding down; a side must not vanish.
    most = int(math.log2(min(facts.row_shape)))
    if MAX_BLOCKS >= len(cnn.channels) > most:
        height, width = facts.row_shape
        yield Violation(
            "model.cnn.channels",
            f"expected at most {most} blocks, because each halves the {height} by {width} image; "
            f"got {len(cnn.channels)}",
        )
