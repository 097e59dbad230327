"""Rules about tables in files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from modelrail_trainer.spec import (
    CategoryEncoding,
    Encoding,
    HashEncoding,
    NumberEncoding,
    TableDataset,
    TextEncoding,
    WordTokens,
)
from modelrail_trainer.violation import Violation, nothing_set, real, shown, whole

MAX_FLOAT = 3.4e38
MAX_PATHS = 10_000
MAX_COLUMNS = 4_096
MAX_CATEGORIES = 1_000
MAX_BUCKETS = 10_000
MAX_TOKENS = 4_096
MAX_VOCABULARY = 200_000
MAX_NAME_CHARACTERS = 128
OUTPUT_NAMES = frozenset({"label", "logits", "probabilities", "y"})
"""Of the exported graph; an input of it cannot be called so."""
GRAPH_PREFIXES = ("encode.", "network.")
"""Of the names inside the exported graph."""
TABLE_ENDINGS = frozenset({".arrow", ".csv", ".parquet"})


def check_paths(field: str, paths: Sequence[str]) -> Iterator[Violation]:
    """Finds what is wrong with the paths of files that can be seen without the files."""
    if not 1 <= len(paths) <= MAX_PATHS:
        yield Violation(field, f"expected from 1 to {MAX_PATHS} files, got {len(paths)}")
    for position, file in enumerate(paths[:MAX_PATHS]):
        if not file or "\0" in file or ".." in Path(file).parts:
            yield Violation(
                f"{field}[{position}]", f"expected a path without `..`, got {shown(file)}"
            )


def check_table(table: TableDataset) -> Iterator[Violation]:
    """Finds what is wrong with `dataset.table` that can be seen without its files."""
    path = "dataset.table"
    yield from check_paths(f"{path}.paths", table.paths)
    endings = {Path(file).suffix.lower() for file in table.paths}
    if table.paths and (len(endings) > 1 or not endings <= TABLE_ENDINGS):
        known = ", ".join(sorted(TABLE_ENDINGS))
        got = ", ".join(shown(ending) for ending in sorted(endings))
        yield Violation(
            f"{path}.paths",
            f"expected files of one format, with one of the endings {known}; got {got}",
        )
    yield from check_name(f"{path}.target", table.target)
    if len(table.columns) > MAX_COLUMNS:
        yield Violation(
            f"{path}.columns", f"expected at most {MAX_COLUMNS} columns, got {len(table.columns)}"
        )
        return
    seen = {table.target}
    for position, column in enumerate(table.columns):
        field = f"{path}.columns[{position}]"
        for problem in check_column_name(column.name):
            yield Violation(f"{field}.name", problem)
        if column.name in seen:
            yield Violation(
                f"{field}.name",
                "expected a column that is neither the target nor named twice, got "
                + shown(column.name),
            )
        seen.add(column.name)
        yield from _encoding(field, column.encoding, len(table.columns))


def check_name(field: str, name: str) -> Iterator[Violation]:
    """Finds why no column can be called so."""
    if not 1 <= len(name) <= MAX_NAME_CHARACTERS or not name.isprintable():
        yield Violation(
            field,
            f"expected a name of 1 to {MAX_NAME_CHARACTERS} printable characters, got "
            + shown(name),
        )


def check_column_name(name: str) -> Iterator[str]:
    """Finds why a column of that name cannot be an input of the exported graph."""
    for _, problem in check_name("", name):
        yield problem
    if name in OUTPUT_NAMES or name.startswith(GRAPH_PREFIXES):
        yield (
            f"expected none of the names of the exported graph, which are "
            f"{', '.join(sorted(OUTPUT_NAMES))} and those that begin with "
            f"{' or '.join(GRAPH_PREFIXES)}; got {shown(name)}"
        )


def _encoding(field: str, encoding: Encoding | None, columns: int) -> Iterator[Violation]:
    match encoding:
        case NumberEncoding(constant=constant):
            yield from real(
                f"{field}.number.constant",
                constant,
                "a number that fits into 32 bits",
                least=-MAX_FLOAT,
                most=MAX_FLOAT,
            )
        case CategoryEncoding(max_categories=most):
            yield from whole(f"{field}.category.max_categories", most, 1, MAX_CATEGORIES)
        case HashEncoding(buckets=buckets):
            yield from whole(f"{field}.hash.buckets", buckets, 2, MAX_BUCKETS)
        case TextEncoding() as text:
            yield from _text(f"{field}.text", text, columns)
        case None:
            pass


def _text(field: str, text: TextEncoding, columns: int) -> Iterator[Violation]:
    if columns > 1:
        yield Violation(
            field,
            f"expected the only column to predict from, because a row of tokens and numbers has no "
            f"model yet; got {columns} columns",
        )
    if text.tokens is None:
        yield nothing_set(f"{field}.tokens", "words", "bytes")
    yield from whole(f"{field}.max_tokens", text.max_tokens, 1, MAX_TOKENS)
    if isinstance(text.tokens, WordTokens):
        most = text.tokens.max_vocabulary
        yield from whole(f"{field}.words.max_vocabulary", most, 1, MAX_VOCABULARY)
        yield from whole(f"{field}.words.min_count", text.tokens.min_count, 1)
