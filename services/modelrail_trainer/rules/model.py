"""Rules about architectures, and about what each can be trained on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from modelrail_trainer.parameters import parameter_count
from modelrail_trainer.rules.custom import check_custom
from modelrail_trainer.rules.violation import Violation, nothing_set, real, whole, widths
from modelrail_trainer.spec import (
    CnnModel,
    CustomModel,
    DatasetFacts,
    GptModel,
    GruModel,
    LinearModel,
    MlpModel,
    ResNetModel,
    Task,
    TrainingJobSpec,
    TransformerModel,
    body_outputs,
)

MAX_UNITS = 65_536
MAX_LAYERS = 16
MAX_CHANNELS = 4_096
MAX_BLOCKS = 8
# 4 bytes each: the ONNX file stays a single one, well below protobuf's limit of 2 GiB.
MAX_PARAMETERS = 250_000_000

_NAMES: dict[type, str] = {
    LinearModel: "linear",
    MlpModel: "mlp",
    CnnModel: "cnn",
    ResNetModel: "resnet",
    GruModel: "gru",
    TransformerModel: "transformer",
    GptModel: "gpt",
    CustomModel: "custom",
}


def check_model(  # noqa: PLR0912  # one branch a kind
    spec: TrainingJobSpec, facts: DatasetFacts | None
) -> Iterator[Violation]:
    """Finds what is wrong with `model`."""
    wrong: list[Violation] = []
    match spec.model:
        case None:
            wrong.append(nothing_set("model", *_NAMES.values()))
        case MlpModel(hidden_units=hidden):
            wrong += widths("model.mlp.hidden_units", hidden, "layers", MAX_LAYERS, MAX_UNITS)
        case CnnModel() as cnn:
            wrong += widths("model.cnn.channels", cnn.channels, "blocks", MAX_BLOCKS, MAX_CHANNELS)
            wrong += whole("model.cnn.hidden_units", cnn.hidden_units, 1, MAX_UNITS)
            wrong += real(
                "model.cnn.dropout", cnn.dropout, "a probability in [0, 1)", least=0.0, below=1.0
            )
            if facts is not None:
                wrong += _check_image("model.cnn", cnn.channels, facts)
        case ResNetModel(channels=channels):
            path = "model.resnet"
            wrong += widths(f"{path}.channels", channels, "stages", MAX_BLOCKS, MAX_CHANNELS)
            wrong += whole(f"{path}.blocks_per_stage", spec.model.blocks_per_stage, 1, MAX_LAYERS)
            if facts is not None:
                wrong += _check_image(path, channels, facts)
        case GruModel() as gru:
            wrong += whole("model.gru.embedding_size", gru.embedding_size, 1, MAX_UNITS)
            wrong += whole("model.gru.hidden_units", gru.hidden_units, 1, MAX_UNITS)
            wrong += whole("model.gru.layers", gru.layers, 1, MAX_LAYERS)
        case TransformerModel() as transformer:
            wrong += _check_transformer(transformer)
        case GptModel() as gpt:
            wrong += _check_gpt(gpt)
        case CustomModel() as custom:
            wrong += check_custom("model.custom", custom)
    if facts is not None and spec.model is not None and not wrong:
        wrong += _check_tokens(spec, facts)
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


def _check_transformer(model: TransformerModel) -> Iterator[Violation]:
    path = "model.transformer"
    sizes = [
        *whole(f"{path}.width", model.width, 1, MAX_CHANNELS),
        *whole(f"{path}.layers", model.layers, 1, MAX_LAYERS),
        *whole(f"{path}.heads", model.heads, 1, MAX_CHANNELS),
    ]
    yield from sizes
    # Places are told by pairs of a sine and a cosine, and every head gets as many numbers.
    if not sizes and (model.width % 2 or model.width % model.heads):
        yield Violation(
            f"{path}.width",
            f"expected an even multiple of heads = {model.heads}, got {model.width}"
            if model.heads % 2
            else f"expected a multiple of heads = {model.heads}, got {model.width}",
        )
    yield from whole(f"{path}.feed_forward", model.feed_forward, 1, MAX_UNITS)
    yield from real(
        f"{path}.dropout", model.dropout, "a probability in [0, 1)", least=0.0, below=1.0
    )


def _check_gpt(model: GptModel) -> Iterator[Violation]:
    path = "model.gpt"
    sizes = [
        *whole(f"{path}.width", model.width, 1, MAX_CHANNELS),
        *whole(f"{path}.layers", model.layers, 1, MAX_LAYERS),
        *whole(f"{path}.heads", model.heads, 1, MAX_CHANNELS),
    ]
    yield from sizes
    # Every head gets as many numbers, and rotates them in pairs.
    if not sizes and model.width % (2 * model.heads):
        yield Violation(
            f"{path}.width",
            f"expected a multiple of 2 · heads = {2 * model.heads}, got {model.width}",
        )
    yield from real(
        f"{path}.dropout", model.dropout, "a probability in [0, 1)", least=0.0, below=1.0
    )


def _check_tokens(spec: TrainingJobSpec, facts: DatasetFacts) -> Iterator[Violation]:
    name = _NAMES[type(spec.model)]
    if (facts.task is Task.LANGUAGE) != isinstance(spec.model, GptModel):
        yield Violation(
            f"model.{name}",
            f"expected gpt for a data set of lines, got {name}"
            if facts.task is Task.LANGUAGE
            else "expected a data set of lines for gpt",
        )
        return
    if isinstance(spec.model, CustomModel):
        reads_tokens = bool(facts.tokens)  # it is told, and has to read what there is
    else:
        reads_tokens = isinstance(spec.model, GruModel | TransformerModel | GptModel)
    if reads_tokens and not facts.tokens:
        yield Violation(
            f"model.{name}",
            f"expected a data set of tokens, got rows of numbers of shape {list(facts.row_shape)}",
        )
    if facts.tokens and not reads_tokens:
        yield Violation("model", f"expected one of gru, transformer for tokens, got {name}")
    if facts.tokens and spec.preprocessing:
        # A token is a name, not a quantity.
        yield Violation("preprocessing", "expected no steps for tokens, which cannot be scaled")


def _check_image(path: str, channels: tuple[int, ...], facts: DatasetFacts) -> Iterator[Violation]:
    if len(facts.row_shape) not in (2, 3):
        yield Violation(
            path,
            f"expected a data set of images, got rows of shape {list(facts.row_shape)}",
        )
        return
    # Each block halves the image, rounding down; a side must not vanish. A residual network halves
    # it once less, so its last image has two rows: one pixel alone has no variance to normalize by.
    height, width = facts.row_shape[-2:]
    most = int(math.log2(min(height, width)))
    if MAX_BLOCKS >= len(channels) > most:
        yield Violation(
            f"{path}.channels",
            f"expected at most {most} blocks, because each halves the {height} by {width} image; "
            f"got {len(channels)}",
        )
