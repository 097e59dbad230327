"""Jobs on tables of texts, by real worker processes: raw texts in, labels out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pyarrow as pa
import pyarrow.parquet
import pytest
from google.protobuf import json_format

from modelrail.trainer.v1 import trainer_pb2 as pb
from modelrail_trainer.handover.journal import FailedEvent, FailureReason, read_events
from tests.integration.worker_jobs import said, succeeded, train

MODELS: dict[str, dict[str, Any]] = {
    "gru": {"gru": {"embedding_size": 8, "hidden_units": 8, "bidirectional": True, "layers": 2}},
    "transformer": {"transformer": {"width": 8, "layers": 1, "heads": 2, "dropout": 0.1}},
}


def job(model: dict[str, Any], column: dict[str, Any], **fields: Any) -> pb.TrainingJobSpec:
    return json_format.ParseDict(
        {
            "dataset": {"table": {"paths": ["a.parquet"], "target": "t", "columns": [column]}},
            "model": model,
            "loss": {"cross_entropy": {}},
            "optimizer": {"adam": {"learning_rate": 0.02}},
            "epochs": 12,
            "batch_size": 16,
            "seed": 1,
            "publication": {"model": "texts"},
            **fields,
        },
        pb.TrainingJobSpec(),
    )


@pytest.fixture
def praise(tmp_path: Path) -> tuple[list[str], list[str]]:
    """Texts with one word that tells, in capitals or not, among others; and their labels."""
    generator = np.random.default_rng(5)
    labels = [("good", "bad")[int(place)] for place in generator.integers(0, 2, 400)]
    words = {"good": ("Fine", "GREAT"), "bad": ("poor", "Awful!")}
    texts = []
    for label in labels:
        others = list(
            generator.choice(["the", "cat,", "naïve", "日本", "42"], generator.integers(1, 9))
        )
        others.insert(int(generator.integers(0, len(others) + 1)), generator.choice(words[label]))
        texts.append(" ".join(map(str, others)))
    pyarrow.parquet.write_table(pa.table({"text": texts, "t": labels}), tmp_path / "a.parquet")
    return texts, labels


@pytest.mark.parametrize("name", MODELS)
def test_a_client_sends_raw_texts_and_reads_labels(
    name: str, praise: tuple[list[str], list[str]], tmp_path: Path
) -> None:
    column = {"name": "text", "text": {"words": {"lower_case": True}, "max_tokens": 16}}
    directory, result = succeeded(job(MODELS[name], column), tmp_path)
    assert [(i.name, i.datatype, i.shape) for i in result.signature.inputs] == [
        ("text", "BYTES", ("batch", 1))
    ]
    texts, labels = praise
    session = onnxruntime.InferenceSession(directory / "model.onnx")
    sent = np.array(texts, object).reshape(-1, 1)
    (label,) = session.run(["label"], {"text": sent})
    assert (label[:, 0] == np.array(labels, object)).mean() > 0.95
    # The network alone takes tokens, in rows of any length.
    bare = onnxruntime.InferenceSession(directory / "bare.onnx")
    ((tokens,)) = bare.get_inputs()
    assert (tokens.name, tokens.type, tokens.shape) == (
        "tokens",
        "tensor(int64)",
        ["batch", "length"],
    )
    assert any(line.startswith("the texts became rows of tokens, of ") for line in said(directory))


def test_a_client_sends_bytes_where_they_are_the_tokens(
    praise: tuple[list[str], list[str]], tmp_path: Path
) -> None:
    column = {"name": "text", "text": {"bytes": {}, "max_tokens": 40}}
    spec = job({"gru": {"hidden_units": 12}}, column, epochs=2)
    directory, result = succeeded(spec, tmp_path)
    assert [(i.name, i.datatype, i.shape) for i in result.signature.inputs] == [
        ("text", "UINT8", ("batch", "length"))
    ]
    session = onnxruntime.InferenceSession(directory / "model.onnx")
    content = np.frombuffer(praise[0][0].encode(), np.uint8).reshape(1, -1)
    more = np.pad(content, ((0, 0), (0, 9)))
    alone, filled = (session.run(["logits"], {"text": sent})[0] for sent in (content, more))
    np.testing.assert_allclose(alone, filled, atol=1e-5)
    assert any("training texts have more than 40 tokens" in line for line in said(directory))


def test_hashed_texts_and_medians_pass_the_gate(tmp_path: Path) -> None:
    words = [f"word {number % 50}" for number in range(300)]
    numbers = [None if number % 5 == 0 else float(number % 50) for number in range(300)]
    labels = ["low" if number % 50 < 25 else "high" for number in range(300)]
    table = pa.table({"word": words, "n": numbers, "t": labels})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    spec = job({"linear": {}}, {"name": "word", "hash": {"buckets": 300}})
    spec.dataset.table.columns.add(name="n").number.missing = pb.NumberEncoding.MISSING_MEDIAN
    directory, _ = succeeded(spec, tmp_path)
    session = onnxruntime.InferenceSession(directory / "model.onnx")
    feed: dict[str, Any] = {
        "word": np.array(words, object).reshape(-1, 1),
        "n": np.array(numbers, np.float32).reshape(-1, 1),
    }
    (label,) = session.run(["label"], feed)
    assert (label[:, 0] == np.array(labels, object)).mean() > 0.9
    assert "2 columns became 301 features" in said(directory)


def test_a_model_of_numbers_does_not_read_tokens(
    praise: tuple[list[str], list[str]], tmp_path: Path
) -> None:
    column = {"name": "text", "text": {"words": {}}}
    status, directory = train(job({"mlp": {"hidden_units": [4]}}, column), tmp_path)
    assert status == 3
    failure = read_events(directory / "events.jsonl", 0)[0][-1]
    assert isinstance(failure, FailedEvent)
    assert failure.reason is FailureReason.DATA
    assert "expected one of gru, transformer for tokens, got mlp" in failure.message
