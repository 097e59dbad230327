"""Texts as rows of tokens: what a word is, the vocabulary, and the same as a graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from modelrail.trainer.v1 import trainer_pb2 as pb
from modelrail_trainer.encodings import Fitted
from modelrail_trainer.encodings.text import (
    FittedBytes,
    FittedText,
    FittedWords,
    TextFitting,
)
from modelrail_trainer.encodings.words import words_of
from modelrail_trainer.failure import DataError
from modelrail_trainer.handover.artifact import Signature, TensorSpec
from modelrail_trainer.protocol.specification import spec_from_pb
from modelrail_trainer.rules.validation import validate
from modelrail_trainer.spec import (
    ByteTokens,
    Split,
    TableColumn,
    TableDataset,
    Task,
    TextEncoding,
    WordTokens,
    with_defaults,
)
from modelrail_trainer.worker.learning.loop import without_padding
from modelrail_trainer.worker.table.dataset import Table, load_table
from modelrail_trainer.worker.table.graph import end_to_end, end_to_end_signature

SIZE = 12
HALF = Split(validation_fraction=0.25, test_fraction=0.25, seed=3)
# Whatever can stand in a text; the pieces meet the edges of what a word is more often.
TEXT = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.lists(
        st.sampled_from(
            [
                *("free", "FREE", "Free", "naïve", "ÄÖ", "e\u0301", "١٢٣", "שלום", "日本語"),
                *(" ", "\t", "\n", "\r", "\v", "\x85", "\u00a0", "\u2003", "\u200b", "\u3000"),
                *("\u200d", "x" * 300),
                *("\0", "\x1b", "\x7f", "\ufeff", "\ufffd", "\ufffe", "\U0010ffff", "\ue000"),
                *("!", "_", "'", "…", "€", "😀", "👩\u200d💻", "İ", "ẞ", "K"),
            ]
        )
    ).map("".join),
)  # fmt: skip
WORDS = ("free", "naïve", "e\u0301", "日", "!", "\ufffd", "ÄÖ", "k", "😀", "\u200d")


def texts(*values: str) -> Any:
    return np.array(values, object)


def session(encoding: FittedText) -> onnxruntime.InferenceSession:
    """The graph of one text column, whose output is its tokens."""
    value = onnx.helper.make_tensor_value_info
    bare = onnx.helper.make_model(
        onnx.helper.make_graph(
            [onnx.helper.make_node("Cast", ["tokens"], ["y"], to=onnx.TensorProto.FLOAT)],
            "bare",
            [value("tokens", onnx.TensorProto.INT64, ["batch", "length"])],
            [value("y", onnx.TensorProto.FLOAT, ["batch", "length"])],
        ),
        opset_imports=[onnx.helper.make_opsetid("", 20)],
        ir_version=10,
    )
    encodings: tuple[Fitted, ...] = (encoding,)
    y = TensorSpec(name="y", datatype="FP32", shape=("batch", "length"))
    signature = end_to_end_signature(Signature((), (y,)), encodings, ())
    whole = end_to_end(bare, encodings, signature)
    onnx.checker.check_model(whole, full_check=True)
    return onnxruntime.InferenceSession(whole.SerializeToString())


def assert_same(got: Any, expected: Any) -> None:
    """The graph's rows are as long as the longest text; the rest of Python's must be padding."""
    assert 1 <= got.shape[1] <= SIZE
    np.testing.assert_array_equal(got, expected[:, : got.shape[1]])
    assert not expected[:, got.shape[1] :].any()


# Words


def test_words_are_parted_by_white_space_and_punctuation_stands_alone() -> None:
    def words(text: str, *, lower_case: bool = False) -> list[str]:
        return list(words_of(text, lower_case=lower_case))

    assert words("Don't  pay $9.99!") == ["Don", "'", "t", "pay", "$", "9", ".", "99", "!"]
    assert words("naïve e\u0301 שלום\u00a0x\u3000y\u0085z") == [
        *("naïve", "e\u0301", "שלום", "x", "y", "z"),
    ]
    assert words("日本 か😀😀…") == ["日", "本", "か", "😀", "😀", "…"]
    assert words("a\0b\x7fc") == ["a", "b", "c"]
    assert words(" \n\t") == words("") == []
    assert words("x、y。z\u3000") == ["x", "、", "y", "。", "z"]
    assert words("ABC ÄÖ İ", lower_case=True) == ["abc", "ÄÖ", "İ"]
    assert words("@AZ[ `az{", lower_case=True) == ["@", "az", "[", "`", "az", "{"]


def test_every_code_point_is_of_the_same_kind_in_python_and_in_the_graph() -> None:
    points = [chr(point) for point in range(0x110000) if not 0xD800 <= point < 0xE000]
    # Each between two letters: a word with them, a word between them, or nothing.
    lines = [f"a{point}a" for point in points]
    encoding = FittedWords("text", ("a",), lower_case=False, length=SIZE)
    (got,) = session(encoding).run(None, {"text": texts(*lines).reshape(-1, 1)})
    assert_same(got, encoding.encode(texts(*lines)))
    # Joined to the letters it is one word, parting it leaves two, and alone it makes three.
    assert {int(count) for count in np.unique((got != 0).sum(axis=1))} == {1, 2, 3}


WORD_SESSIONS = {
    lower: session(FittedWords("text", WORDS, lower_case=lower, length=SIZE))
    for lower in (False, True)
}


@settings(deadline=None)
@given(st.lists(TEXT, min_size=1, max_size=4), st.booleans())
@example([""], True)
@example(["", "\0", " "], False)
@example(["x" * 100_000 + " FREE", "free " * 100], True)
def test_the_graph_finds_the_words_that_python_finds(rows: list[str], lower_case: bool) -> None:
    encoding = FittedWords("text", WORDS, lower_case=lower_case, length=SIZE)
    (got,) = WORD_SESSIONS[lower_case].run(None, {"text": texts(*rows).reshape(-1, 1)})
    assert_same(got, encoding.encode(texts(*rows)))


def test_every_character_of_ascii_has_the_same_lower_case_in_python_and_in_the_graph() -> None:
    characters = [chr(point) for point in range(128)]
    encoding = FittedWords("text", tuple(filter(str.isprintable, characters)), True, SIZE)
    (got,) = session(encoding).run(None, {"text": texts(*characters).reshape(-1, 1)})
    assert_same(got, encoding.encode(texts(*characters)))


BYTE_SESSION = session(FittedBytes("text", SIZE))


@settings(deadline=None)
@given(st.lists(TEXT, min_size=1, max_size=4), st.integers(0, 3))
@example([""], 0)
@example(["\0\0", "a\0b\0" + "\0" * 20], 1)
@example(["abcdefghijk\0\0\0z"], 0)
def test_the_graph_reads_the_bytes_that_python_reads(rows: list[str], more: int) -> None:
    contents = [text.encode() for text in rows]
    longest = max(map(len, contents)) + more
    sent = np.zeros((len(rows), longest), np.uint8)
    for row, content in zip(sent, contents, strict=True):
        row[: len(content)] = np.frombuffer(content, np.uint8)
    (got,) = BYTE_SESSION.run(None, {"text": sent})
    assert_same(got, FittedBytes("text", SIZE).encode(texts(*rows)))


def test_a_byte_is_a_token_and_zeros_at_the_end_are_none() -> None:
    rows = FittedBytes("text", 5).encode(texts("aé", "", "a\0b\0", "abcdefg"))
    assert rows.tolist() == [
        [98, 196, 170, 0, 0],
        [0, 0, 0, 0, 0],
        [98, 1, 99, 0, 0],
        [98, 99, 100, 101, 102],
    ]
    assert rows.dtype == np.int64


# The vocabulary


def fitted(*rows: str, size: int = 8, **fields: Any) -> FittedWords:
    fitting = TextFitting("t", TextEncoding(tokens=WordTokens(**fields), max_tokens=size))
    for row in rows:
        fitting.add(texts(row))
    encoding = fitting.fitted()
    assert isinstance(encoding, FittedWords)
    return encoding


def test_the_vocabulary_has_the_most_frequent_words_first() -> None:
    encoding = fitted("b b a c", "c a d", max_vocabulary=3)
    assert encoding.words == ("a", "b", "c")
    assert encoding.tokens == 5
    assert encoding.encode(texts("c d a")).tolist() == [[4, 1, 2, 0, 0, 0, 0, 0]]


def test_rare_words_and_words_beyond_the_end_of_a_row_are_unknown() -> None:
    assert fitted("a a b", "c", min_count=2).words == ("a",)
    assert fitted("a b c", "c c", size=2).words == ("c", "a", "b")
    assert fitted("a b c", size=2).words == ("a", "b")
    assert fitted("x" * 64 + " " + "y" * 65).words == ("x" * 64,)


def test_capitals_count_as_small_letters_when_that_is_wanted() -> None:
    assert fitted("Free FREE free", lower_case=True).words == ("free",)
    assert fitted("Free FREE free").words == ("FREE", "Free", "free")


def test_words_that_do_not_fit_into_memory_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelrail_trainer.encodings.text._MAX_DISTINCT", 4)
    fitting = TextFitting("t", TextEncoding(tokens=WordTokens()))
    for row in ("a a b b c", "d e f", "a"):
        fitting.add(texts(row))
    encoding = fitting.fitted()
    assert isinstance(encoding, FittedWords)
    assert encoding.words == ("a", "b")
    assert list(fitting.remarks()) == [
        "more than 4 different words; the rarest were forgotten on the way"
    ]


# A table of texts


def loaded(tmp_path: Path, path: Path, tokens: WordTokens | ByteTokens, size: int = 6) -> Table:
    folder = tmp_path / "data"
    folder.mkdir()
    column = TableColumn(name="text", encoding=TextEncoding(tokens=tokens, max_tokens=size))
    dataset = TableDataset(paths=(str(path),), target="t", columns=(column,))
    return load_table(dataset, HALF, Task.CLASSIFICATION, folder)


def test_a_table_of_texts_becomes_rows_of_tokens_of_the_training_rows_words(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.parquet"
    rows = [f"word{number} all" + " more" * (number % 7) for number in range(200)]
    pyarrow.parquet.write_table(pa.table({"text": rows, "t": list("xy") * 100}), path)
    table = loaded(tmp_path, path, WordTokens())
    train, validation, test = (part.inputs for part in table.parts)
    assert train.dtype == np.int64
    assert train.shape[1] == 6
    (encoding,) = table.encodings
    assert isinstance(encoding, FittedWords)
    # Each row has a word of its own; just those of the training rows are known.
    assert len(encoding.words) == len(train) + 2
    assert table.tokens == encoding.tokens
    assert (train[:, 0] >= 2).all()
    assert (validation[:, 0] == 1).all()
    assert (test[:, 0] == 1).all()
    cut = sum(len(table_row.nonzero()[0]) == 6 for table_row in train)
    assert table.remarks[0].endswith(" training texts have more than 6 tokens and were cut")
    told = int(table.remarks[0].split()[0])
    assert 0 < told < cut  # a text of exactly 6 words is whole
    assert f"of {len(train)} training" in table.remarks[0]


def test_bytes_that_are_no_text_fail_the_job_when_the_table_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"text,t\n" + b"good,x\nbad \xff\xfe,y\n" * 50)
    with pytest.raises(DataError, match=r"UTF-?8"):
        loaded(tmp_path, path, ByteTokens())


def wire(**columns: str) -> pb.TrainingJobSpec:
    message = pb.TrainingJobSpec()
    message.dataset.table.paths.append("a.csv")
    message.dataset.table.target = "t"
    for name, kind in columns.items():
        column = message.dataset.table.columns.add(name=name)
        if kind == "words":
            column.text.words.SetInParent()
        elif kind == "bytes":
            column.text.bytes.SetInParent()
        elif kind == "nothing":
            column.text.SetInParent()
    return message


def test_the_encoding_comes_over_the_wire_with_its_defaults() -> None:
    for kind, tokens in (
        ("words", WordTokens(max_vocabulary=20_000, min_count=1, lower_case=False)),
        ("bytes", ByteTokens()),
        ("nothing", None),
    ):
        spec = with_defaults(spec_from_pb(wire(a=kind)))
        assert isinstance(spec.dataset, TableDataset)
        (column,) = spec.dataset.columns
        assert column.encoding == TextEncoding(tokens=tokens, max_tokens=256)


def test_what_cannot_be_names_its_field() -> None:
    field = "dataset.table.columns[0].text"
    beside = dict(validate(spec_from_pb(wire(a="words", b="number"))))
    assert beside[field].startswith("expected the only column to predict from")
    nothing = dict(validate(spec_from_pb(wire(a="nothing"))))
    assert nothing[f"{field}.tokens"] == "expected one of: words, bytes; got none of them"
    message = wire(a="words")
    text = message.dataset.table.columns[0].text
    text.max_tokens, text.words.max_vocabulary, text.words.min_count = 5000, 200_001, -1
    wrong = dict(validate(spec_from_pb(message)))
    assert {name for name in wrong if name.startswith(field)} == {
        f"{field}.max_tokens",
        f"{field}.words.max_vocabulary",
        f"{field}.words.min_count",
    }
    assert not [name for name in dict(validate(spec_from_pb(wire(a="words")))) if field in name]


# Training


def test_a_batch_is_cut_to_its_longest_row_and_never_to_nothing() -> None:
    rows = torch.tensor([[3, 0, 0, 0], [1, 2, 0, 0]])
    assert without_padding(rows).tolist() == [[3, 0], [1, 2]]
    assert without_padding(rows * 0).tolist() == [[0], [0]]
    full = torch.ones(2, 4, dtype=torch.int64)
    assert without_padding(full).tolist() == full.tolist()
