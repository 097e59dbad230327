"""From a text to a row of tokens: words by a vocabulary that is fitted, or bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
import numpy.typing as npt

from modelrail_trainer.encodings.column import Column, ColumnType, Tokens
from modelrail_trainer.encodings.encoding import (
    ML_DOMAIN,
    ORT_DOMAIN,
    Encoding,
    Fitted,
    Fitting,
    Summary,
)
from modelrail_trainer.encodings.words import RE2_PATTERN, words_of
from modelrail_trainer.handover.artifact import BATCH, LENGTH, TensorSpec
from modelrail_trainer.rules.bounds import Whole, name_of, violations_of
from modelrail_trainer.rules.violation import Violation, nothing_set

if TYPE_CHECKING:
    from modelrail_trainer.worker.export.graph import Graph

_MAX_TOKENS = 4_096
_MAX_VOCABULARY = 200_000

PADDING = 0
UNKNOWN = 1
_FIRST_WORD = 2
_MAX_WORD_CHARACTERS = 64
"""Longer words, such as encoded attachments, are never in the vocabulary."""
_MAX_DISTINCT = 2_000_000
"""Different words that are counted at a time."""
_WORDS_AXIS = "encode.words"
# Zeros inside and at the end, white space, capitals, combining marks, right to left, emoji.
_HOSTILE_TEXTS = (
    "a\0b\0",
    "\u00a0\t\u2003\r\n",
    "ABC Ä e\u0301",
    "\u0627\u0644 \u202e",
    "\U0001f600!?",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class WordTokens:
    """A token is a word, numbered by its place among the most frequent ones."""

    max_vocabulary: Annotated[int, Whole(1, _MAX_VOCABULARY)] = 20_000
    min_count: Annotated[int, Whole(1)] = 1
    lower_case: bool = False


@dataclass(frozen=True, slots=True)
class ByteTokens:
    """A token is a byte."""


_TOKENS: Mapping[str, type] = {"words": WordTokens, "bytes": ByteTokens}


@dataclass(frozen=True, slots=True, kw_only=True)
class TextEncoding(Encoding):
    """A text becomes a row of tokens.

    Attributes:
        tokens: None: nothing was set, which is refused.
        max_tokens: Further ones are not read.
    """

    reads: ClassVar[ColumnType] = ColumnType.TEXT

    tokens: WordTokens | ByteTokens | None
    max_tokens: Annotated[int, Whole(1, _MAX_TOKENS)] = 256

    def violations(self, field: str, columns: int) -> Iterator[Violation]:
        """Finds other columns beside this one, and what is wrong with the tokens."""
        if columns > 1:
            yield Violation(
                field,
                "expected the only column to predict from, because a row of tokens and numbers has "
                f"no model yet; got {columns} columns",
            )
        if self.tokens is None:
            yield nothing_set(f"{field}.tokens", *_TOKENS)
        else:
            yield from violations_of(f"{field}.{name_of(_TOKENS, self.tokens)}", self.tokens)

    def fitting(self, name: str, folder: Path | None = None) -> TextFitting:
        """Returns what is fitted on the training rows."""
        return TextFitting(name, self)


@dataclass(frozen=True, slots=True)
class FittedWords(Fitted):
    """The number of each word of a text.

    Attributes:
        name: Of the column.
        words: The known ones; the first has token 2. Token 1 is any other, 0 is padding.
        lower_case: Whether A to Z are read as a to z.
        length: Of a row; further words are not read.
    """

    words: tuple[str, ...]
    lower_case: bool
    length: int

    @property
    def size(self) -> int:
        """The longest row of tokens."""
        return self.length

    @property
    def tokens(self) -> int:
        """Size of the vocabulary, with padding and the unknown word."""
        return _FIRST_WORD + len(self.words)

    @property
    def domains(self) -> tuple[str, ...]:
        """Those of the look-up of words, and of what finds them."""
        return (ML_DOMAIN, ORT_DOMAIN)

    def encode(self, values: Column) -> Tokens:
        """Maps texts [N] to tokens [N, size]."""
        places = {word: place for place, word in enumerate(self.words, _FIRST_WORD)}
        rows = np.full((len(values), self.length), PADDING, np.int64)
        for row, text in zip(rows, values, strict=True):
            found = islice(words_of(text, lower_case=self.lower_case), self.length)
            tokens = [places.get(word, UNKNOWN) for word in found]
            row[: len(tokens)] = tokens
        return rows

    def add_to(self, graph: Graph) -> str:
        """Adds the operators that compute `encode`; returns their result, [batch, length]."""
        text = graph.flattened(self.name)
        if self.lower_case:
            # In the locale "C", which every machine has, just A to Z have a lower case.
            text = graph.apply("StringNormalizer", text, case_change_action="LOWER", locale="C")
        found = graph.apply(
            "Tokenizer",
            text,
            domain=ORT_DOMAIN,
            tokenexp=RE2_PATTERN,
            mark=0,
            mincharnum=1,
            pad_value="",
        )  # [batch, words of the longest text]
        # The checker of ONNX knows nothing of the operator, and crashes on a LabelEncoder without
        # the type of its input.
        graph.declare(found, "BYTES", (BATCH, _WORDS_AXIS))
        tokens = graph.apply(
            "LabelEncoder",
            found,
            domain=ML_DOMAIN,
            keys_strings=["", *self.words],
            values_int64s=[PADDING, *range(UNKNOWN + 1, self.tokens)],
            default_int64=UNKNOWN,
        )
        return _row(graph, _ended(graph, tokens), self.length)

    def edge_values(self) -> Column:
        """Returns hostile texts, long ones and none at all, [N]."""
        return _edge_texts(self.length)

    def summary(self) -> Summary:
        """Returns what a report tells of it."""
        return Summary("words", {"vocabulary": float(len(self.words))}, self.words)


@dataclass(frozen=True, slots=True)
class FittedBytes(Fitted):
    """The bytes of a text in UTF-8, each plus 1; zeros at its end are not read.

    Attributes:
        name: Of the column.
        length: Of a row; further bytes are not read.
    """

    length: int

    @property
    def size(self) -> int:
        """The longest row of tokens."""
        return self.length

    @property
    def tokens(self) -> int:
        """Size of the vocabulary, with padding."""
        return 257

    @property
    def input(self) -> TensorSpec:
        """The graph's input, [batch, length]."""
        return TensorSpec(
            name=self.name,
            datatype="UINT8",
            shape=(BATCH, LENGTH),
            meaning="text in UTF-8, zeros after its end",
        )

    def encode(self, values: Column) -> Tokens:
        """Maps texts [N] to tokens [N, size]."""
        rows = np.full((len(values), self.length), PADDING, np.int64)
        for row, text in zip(rows, values, strict=True):
            content = np.frombuffer(bytes_of(text)[: self.length], np.uint8)
            row[: len(content)] = content.astype(np.int64) + 1
        return rows

    def add_to(self, graph: Graph) -> str:
        """Adds the operators that compute `encode`; returns their result, [batch, length]."""
        content = _ended(graph, graph.cast(self.name, "INT64"))
        zeros = graph.apply("Sub", content, content)
        ones = graph.apply("Add", zeros, graph.constant(np.array(1, np.int64)))
        places = graph.apply("CumSum", ones, graph.constant(np.array(1, np.int64)))  # from 1
        filled = graph.apply("Where", graph.cast(content, "BOOL"), places, zeros)
        # The place of the last byte that is not 0; what follows is no part of the text.
        axis = graph.constant(np.array([1], np.int64))
        end = graph.apply("ReduceMax", filled, axis, keepdims=1)  # [batch, 1]
        is_text = graph.apply("LessOrEqual", places, end)
        tokens = graph.apply("Where", is_text, graph.apply("Add", content, ones), filled)
        return _row(graph, tokens, self.length)

    def sent(self, values: Column) -> npt.NDArray[Any]:
        """Returns texts [B] as a client sends them, [B, bytes of the longest]."""
        contents = [text.encode() for text in values]
        longest = max(map(len, contents))
        filled = b"".join(content.ljust(longest, b"\0") for content in contents)
        return np.frombuffer(filled, np.uint8).reshape(len(values), longest)

    def edge_values(self) -> Column:
        """Returns hostile texts, long ones and none at all, [N]."""
        return _edge_texts(self.length)

    def summary(self) -> Summary:
        """Returns what a report tells of it."""
        return Summary("bytes", {})


FittedText = FittedWords | FittedBytes


def bytes_of(text: str) -> bytes:
    """Returns what of a text is read as bytes: a client fills shorter texts with zeros."""
    return text.encode().rstrip(b"\0")


class TextFitting(Fitting):
    """How often each word comes, and how long the texts are.

    Args:
        name: Of the column.
        encoding: What is asked for.

    Raises:
        ValueError: There are no tokens.
    """

    def __init__(self, name: str, encoding: TextEncoding) -> None:
        if encoding.tokens is None:
            raise ValueError("the specification has no tokens")
        self._name = name
        self._tokens: WordTokens | ByteTokens = encoding.tokens
        self._size = encoding.max_tokens
        self._counts: Counter[str] = Counter()
        self._seen: set[str] = set()
        self._rows = 0
        self._cut = 0
        self._forgot = False

    def add(self, values: Column) -> None:
        """Looks at training rows, [N]; words that no row has room for are not counted."""
        self._rows += len(values)
        if len(self._seen) <= 1:
            self._seen.update(values[:2])
            self._seen.update(value for value in values if value not in self._seen)
            self._seen = set(sorted(self._seen)[:2])
        if isinstance(self._tokens, ByteTokens):
            self._cut += sum(len(bytes_of(text)) > self._size for text in values)
            return
        for text in values:
            found = words_of(text, lower_case=self._tokens.lower_case)
            self._counts.update(
                word for word in islice(found, self._size) if len(word) <= _MAX_WORD_CHARACTERS
            )
            self._cut += next(found, None) is not None
        if len(self._counts) > _MAX_DISTINCT:
            # Rare words make room. One that comes back counts from 1 again.
            self._counts = Counter(dict(_ranked(self._counts)[: _MAX_DISTINCT // 2]))
            self._forgot = True

    def fitted(self) -> FittedText:
        """Returns the encoding."""
        if isinstance(self._tokens, ByteTokens):
            return FittedBytes(self._name, self._size)
        words = tuple(
            word
            for word, count in _ranked(self._counts)[: self._tokens.max_vocabulary]
            if count >= self._tokens.min_count
        )
        return FittedWords(self._name, words, self._tokens.lower_case, self._size)

    @property
    def is_constant(self) -> bool:
        """Whether all texts seen are the same."""
        return len(self._seen) <= 1

    def remarks(self) -> Iterator[str]:
        """Yields what there is to tell of the training rows."""
        if self._cut:
            yield (
                f"{self._cut} of {self._rows} training texts have more than {self._size} tokens "
                "and were cut"
            )
        if self._forgot:
            yield f"more than {_MAX_DISTINCT} different words; the rarest were forgotten on the way"


def _ranked(counts: Counter[str]) -> list[tuple[str, int]]:
    """Returns the most frequent words first, and equally frequent ones in the alphabet's order."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _edge_texts(size: int) -> Column:
    return np.array(["", *_HOSTILE_TEXTS, "x " * size, "y" * 1000], object)


def _ended(graph: Graph, tokens: str) -> str:
    """Adds a 0 to each row: networks read rows of one token or more."""
    return graph.apply("Pad", tokens, graph.constant(np.array([0, 0, 0, 1], np.int64)))


def _row(graph: Graph, tokens: str, size: int) -> str:
    bounds = (graph.constant(np.array([place], np.int64)) for place in (0, size, 1))
    return graph.apply("Slice", tokens, *bounds)
