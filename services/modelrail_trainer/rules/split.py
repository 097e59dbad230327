"""Rules about what divides the rows: fractions and a seed, a column, groups, or files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from modelrail_trainer.rules.table import check_name, check_paths
from modelrail_trainer.rules.violation import Violation, real, shown, whole
from modelrail_trainer.spec import Dataset, ImageDataset, LinesDataset, Split, TableDataset

_OWN_FILES = ("validation_paths", "test_paths")


def check_split(split: Split, dataset: Dataset) -> Iterator[Violation]:
    """Finds what is wrong with a split, with defaults applied, that can be seen without files."""
    yield from _check_fractions(split)
    yield from whole("split.seed", split.seed, 0)
    yield from _check_dataset(split, dataset)
    yield from _check_combination(split)
    for field in ("column", "group_column"):
        if name := getattr(split, field):
            yield from check_name(f"split.{field}", name)
            if isinstance(dataset, TableDataset):
                yield from _check_column(f"split.{field}", name, dataset)
    for field in _OWN_FILES:
        if getattr(split, field):
            yield from check_paths(f"split.{field}", getattr(split, field))
    if isinstance(dataset, TableDataset | LinesDataset):
        yield from _check_files(split, dataset)


def meant_fractions(split: Split) -> dict[str, float]:
    """Returns the fractions that count, by field."""
    settled = _settled_fractions(split)
    return {
        f"split.{field}": getattr(split, field)
        for field in ("validation_fraction", "test_fraction")
        if field not in settled
    }


def _settled_fractions(split: Split) -> dict[str, str]:
    """Returns the fractions that mean nothing, with the field that says which rows are meant."""
    settled = {}
    for part, paths in (("validation", split.validation_paths), ("test", split.test_paths)):
        if split.column:
            settled[f"{part}_fraction"] = "split.column"
        elif paths:
            settled[f"{part}_fraction"] = f"split.{part}_paths"
    return settled


def _check_fractions(split: Split) -> Iterator[Violation]:
    fractions = meant_fractions(split)
    wrong: list[Violation] = []
    for field, fraction in fractions.items():
        wrong += real(field, fraction, "a fraction above 0 and below 1", above=0.0, below=1.0)
    yield from wrong
    if not wrong and sum(fractions.values()) >= 1:
        yield Violation(
            "split",
            "expected validation_fraction + test_fraction below 1, so that rows are left for "
            f"training; got {split.validation_fraction:g} + {split.test_fraction:g}",
        )


def _check_dataset(split: Split, dataset: Dataset) -> Iterator[Violation]:
    for field in ("column", "group_column"):
        if getattr(split, field) and not isinstance(dataset, TableDataset | None):
            yield Violation(
                f"split.{field}",
                "expected a column only where dataset.table has columns; divide other data sets "
                "by fractions, or by files",
            )
    for field in _OWN_FILES:
        if getattr(split, field) and not isinstance(dataset, TableDataset | LinesDataset | None):
            instead = (
                "dataset.images.folder.divided or dataset.images.idx.test_images say which images "
                "are in which part"
                if isinstance(dataset, ImageDataset)
                else "divide this data set by fractions"
            )
            yield Violation(
                f"split.{field}",
                f"expected files only beside dataset.table or dataset.lines; {instead}",
            )


def _check_combination(split: Split) -> Iterator[Violation]:
    for field, says in _settled_fractions(split).items():
        if fraction := getattr(split, field):
            yield Violation(
                f"split.{field}",
                f"expected no fraction beside {says}, which says which rows are in that part; got "
                f"{fraction:g}; leave one of them out",
            )
    files = [field for field in _OWN_FILES if getattr(split, field)]
    if split.column and split.group_column:
        yield Violation(
            "split.group_column",
            "expected one of split.column and split.group_column, got both; a column that says "
            "the parts leaves nothing to divide",
        )
    for field in files:
        if split.column:
            yield Violation(
                f"split.{field}",
                "expected no files beside split.column, which says which rows are in which part; "
                "name all files in dataset.table.paths, or leave split.column out",
            )
        elif split.group_column:
            yield Violation(
                f"split.{field}",
                "expected no files beside split.group_column, because a value could come in files "
                "of two parts; name all files in dataset.table.paths, or leave "
                "split.group_column out",
            )


def _check_column(field: str, name: str, table: TableDataset) -> Iterator[Violation]:
    meant = [
        f"dataset.table.columns[{position}]"
        for position, column in enumerate(table.columns)
        if column.name == name
    ]
    if name == table.target:
        meant.append("dataset.table.target")
    if meant:
        yield Violation(
            field,
            f"expected a column that is neither the target nor learned from, got {shown(name)}, "
            f"which is {meant[0]}; name another here, or there",
        )


def _check_files(split: Split, dataset: TableDataset | LinesDataset) -> Iterator[Violation]:
    kind = "table" if isinstance(dataset, TableDataset) else "lines"
    # Where each file was named first. It is not shown: it may have been resolved by now.
    named = {
        path: f"dataset.{kind}.paths[{position}]" for position, path in enumerate(dataset.paths)
    }
    ending = Path(dataset.paths[0]).suffix.lower() if dataset.paths else ""
    for field in _OWN_FILES:
        for position, path in enumerate(getattr(split, field)):
            where = f"split.{field}[{position}]"
            if path in named:
                yield Violation(
                    where,
                    f"expected a file that is named once, got that of {named[path]} again; its "
                    "rows would be in two parts",
                )
            named.setdefault(path, where)
            found = Path(path).suffix.lower()
            if kind == "table" and ending and found != ending:
                yield Violation(
                    where,
                    f"expected a file of the format of dataset.table.paths, {ending}; got "
                    f"{shown(found)}",
                )
