"""From a text to a row of tokens: words by a vocabulary that is fitted, or bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt

from modelrail_trainer.spec import ByteTokens, TextEncoding, WordTokens
from modelrail_trainer.worker.table.column import Column
from modelrail_trainer.worker.table.words import words_of

Tokens = npt.NDArray[np.int64]

PADDING = 0
UNKNOWN = 1
_FIRST_WORD = 2
_MAX_WORD_CHARACTERS = 64
"""Longer words, such as encoded attachments, are never in the vocabulary."""
_MAX_DISTINCT = 2_000_000
"""Different words that are counted at a time."""


@dataclass(frozen=True, slots=True)
class FittedWords:
    """The number of each word of a text.

    Attributes:
        name: Of the column.
        words: The known ones; the first has token 2. Token 1 is any other, 0 is padding.
        lower_case: Whether A to Z are read as a to z.
        size: Length of a row; further words are not read.
    """

    name: str
    words: tuple[str, ...]
    lower_case: bool
    size: int

    @property
    def tokens(self) -> int:
        """Size of the vocabulary, with padding and the unknown word."""
        return _FIRST_WORD + len(self.words)

    def encode(self, values: Column) -> Tokens:
        """Maps texts [N] to tokens [N, size]."""
        places = {word: place for place, word in enumerate(self.words, _FIRST_WORD)}
        rows = np.full((len(values), self.size), PADDING, np.int64)
        for row, text in zip(rows, values, strict=True):
            found = islice(words_of(text, lower_case=self.lower_case), self.size)
            tokens = [places.get(word, UNKNOWN) for word in found]
            row[: len(tokens)] = tokens
        return rows


@dataclass(frozen=True, slots=True)
class FittedBytes:
    """The bytes of a text in UTF-8, each plus 1; zeros at its end are not read.

    Attributes:
        name: Of the column.
        size: Length of a row; further bytes are not read.
    """

    name: str
    size: int

    @property
    def tokens(self) -> int:
        """Size of the vocabulary, with padding."""
        return 257

    def encode(self, values: Column) -> Tokens:
        """Maps texts [N] to tokens [N, size]."""
        rows = np.full((len(values), self.size), PADDING, np.int64)
        for row, text in zip(rows, values, strict=True):
            content = np.frombuffer(bytes_of(text)[: self.size], np.uint8)
            row[: len(content)] = content.astype(np.int64) + 1
        return rows


FittedText = FittedWords | FittedBytes


def bytes_of(text: str) -> bytes:
    """Returns what of a text is read as bytes: a client fills shorter texts with zeros."""
    return text.encode().rstrip(b"\0")


class TextFitting:
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

    def refuses(self, values: Column) -> dict[str, npt.NDArray[np.bool_]]:
        """Returns that every row can be used."""
        return {}

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
