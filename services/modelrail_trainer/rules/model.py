"""Rules about architectures, and about what each can be trained on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from modelrail_trainer.rules.bounds import name_of, violations_of_one
from modelrail_trainer.rules.custom import check_custom
from modelrail_trainer.rules.violation import Violation
from modelrail_trainer.spec import (
    MODELS,
    CustomModel,
    DatasetFacts,
    Model,
    Task,
    TrainingJobSpec,
    body_outputs,
)
from modelrail_trainer.zoo import ARCHITECTURES, Reads

# 4 bytes each: the ONNX file stays a single one, well below protobuf's limit of 2 GiB.
MAX_PARAMETERS = 250_000_000


def check_model(spec: TrainingJobSpec, facts: DatasetFacts | None) -> Iterator[Violation]:
    """Finds what is wrong with `model`."""
    model = spec.model
    wrong = list(violations_of_one("model", MODELS, model))
    if model is None or wrong:
        yield from wrong
        return
    field = f"model.{name_of(MODELS, model)}"
    if isinstance(model, CustomModel):
        wrong += check_custom(field, model)
    else:
        wrong += model.violations(field, facts)
    if facts is not None and not wrong:
        wrong += _check_tokens(spec, model, facts)
    yield from wrong
    if facts is not None and not wrong and not isinstance(model, CustomModel):
        outputs = body_outputs(spec.loss, facts.outputs)
        parameters = model.parameter_count(replace(facts, outputs=outputs))
        if parameters > MAX_PARAMETERS:
            yield Violation(
                "model",
                f"expected at most {MAX_PARAMETERS} weights, so that the ONNX file stays a single "
                f"one; got {parameters}",
            )


def _check_tokens(spec: TrainingJobSpec, model: Model, facts: DatasetFacts) -> Iterator[Violation]:
    name = name_of(MODELS, model)
    # A custom model is told what its rows are, and has to read what there is.
    reads = None if isinstance(model, CustomModel) else model.reads
    if (facts.task is Task.LANGUAGE) != (reads is Reads.BYTES):
        readers = ", ".join(_readers(Reads.BYTES))
        yield Violation(
            f"model.{name}",
            f"expected {readers} for a data set of lines, got {name}"
            if facts.task is Task.LANGUAGE
            else f"expected a data set of lines for {name}",
        )
        return
    if reads is Reads.TOKENS and not facts.tokens:
        yield Violation(
            f"model.{name}",
            f"expected a data set of tokens, got rows of numbers of shape {list(facts.row_shape)}",
        )
    if reads is Reads.NUMBERS and facts.tokens:
        readers = ", ".join(_readers(Reads.TOKENS))
        yield Violation("model", f"expected one of {readers} for tokens, got {name}")
    if facts.tokens and spec.preprocessing:
        # A token is a name, not a quantity.
        yield Violation("preprocessing", "expected no steps for tokens, which cannot be scaled")


def _readers(reads: Reads) -> list[str]:
    return [name for name, kind in ARCHITECTURES.items() if kind.reads is reads]
