"""Rules about tables in files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from modelrail_trainer.encodings import ENCODINGS
from modelrail_trainer.rules.bounds import name_of, violations_of
from modelrail_trainer.rules.violation import Violation, shown
from modelrail_trainer.spec import TableDataset

MAX_PATHS = 10_000
MAX_COLUMNS = 4_096
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
        if column.encoding is not None:
            encoding = f"{field}.{name_of(ENCODINGS, column.encoding)}"
            yield from violations_of(encoding, column.encoding)
            yield from column.encoding.violations(encoding, len(table.columns))


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
