"""The folders that data may be read from, and the files below them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from modelrail_trainer.objects.uri import copy_path, is_uri
from modelrail_trainer.spec import (
    Dataset,
    IdxFiles,
    ImageDataset,
    ImageFolder,
    LinesDataset,
    TableDataset,
    TrainingJobSpec,
)


class DataPathError(ValueError):
    """A path leads to no file that may be read; the message is for the owner of the job."""


class DataRoots:
    """The folders that the operator has opened for training data.

    Args:
        roots: The folders; none means that no files are read.
        job_directory: Of the job whose copies of objects stand for their URIs; None: for none.
    """

    def __init__(self, roots: Sequence[Path], job_directory: Path | None = None) -> None:
        self._roots = tuple(roots)
        self._job_directory = job_directory

    @property
    def real_roots(self) -> tuple[str, ...]:
        """The folders that are there, with links followed."""
        return tuple(str(root.resolve()) for root in self._roots if root.is_dir())

    def resolve(self, path: str) -> Path:
        """Returns the file that a path of a specification means, with links followed.

        A relative path is looked for below each root in turn. What lies outside is not told from
        what does not exist.

        Raises:
            DataPathError: There is no such file below a root.
        """
        return self._resolve(path, Path.is_file, "file")

    def resolve_folder(self, path: str) -> Path:
        """Returns the folder that a path of a specification means, as `resolve` does a file.

        Raises:
            DataPathError: There is no such folder that is a root or below one.
        """
        return self._resolve(path, Path.is_dir, "folder")

    def _resolve(self, path: str, is_wanted: Callable[[Path], bool], noun: str) -> Path:
        if is_uri(path):
            copy = None if self._job_directory is None else copy_path(self._job_directory, path)
            if copy is not None and is_wanted(copy):
                return copy
            raise DataPathError(
                f"expected a {noun} below a --data-root of the trainer, got the URI {path[:200]!r}"
            )
        if not self._roots:
            raise DataPathError("this trainer reads no files: it was started without --data-root")
        for root in self._roots:
            try:
                real_root = root.resolve(strict=True)
                found = (real_root / path).resolve(strict=True)
                if found.is_relative_to(real_root) and is_wanted(found):
                    return found
            except (OSError, ValueError, RuntimeError):  # absent, odd characters, a loop of links
                continue
        raise DataPathError(
            f"expected a {noun} below a --data-root of the trainer, got {path[:200]!r}"
        )


def with_real_paths(spec: TrainingJobSpec, data_roots: DataRoots) -> TrainingJobSpec:
    """Returns the specification with the files that its paths mean.

    Raises:
        DataPathError: A file or folder is not there any more; the message begins with its field.
    """
    split = replace(
        spec.split,
        validation_paths=_real_files(
            data_roots, "split.validation_paths", spec.split.validation_paths
        ),
        test_paths=_real_files(data_roots, "split.test_paths", spec.split.test_paths),
    )
    return replace(spec, dataset=_with_real_paths(spec.dataset, data_roots), split=split)


def _with_real_paths(dataset: Dataset, data_roots: DataRoots) -> Dataset:
    match dataset:
        case TableDataset(paths=paths):
            return replace(dataset, paths=_real_files(data_roots, "dataset.table.paths", paths))
        case LinesDataset(paths=paths):
            return replace(dataset, paths=_real_files(data_roots, "dataset.lines.paths", paths))
        case ImageDataset(source=IdxFiles() as idx):
            source = replace(
                idx,
                images=_real_idx(data_roots, "images", idx.images),
                labels=_real_idx(data_roots, "labels", idx.labels),
                test_images=_real_idx(data_roots, "test_images", idx.test_images),
                test_labels=_real_idx(data_roots, "test_labels", idx.test_labels),
            )
            return replace(dataset, source=source)
        case ImageDataset(source=ImageFolder() as folder):
            path = _real(data_roots.resolve_folder, "dataset.images.folder.path", folder.path)
            return replace(
                dataset, source=replace(folder, path=path, readable=data_roots.real_roots)
            )
        case _:
            return dataset


def _real_files(data_roots: DataRoots, field: str, paths: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(
        _real(data_roots.resolve, f"{field}[{place}]", path) for place, path in enumerate(paths)
    )


def _real_idx(data_roots: DataRoots, name: str, path: str) -> str:
    return _real(data_roots.resolve, f"dataset.images.idx.{name}", path) if path else ""


def _real(resolve: Callable[[str], Path], field: str, path: str) -> str:
    try:
        return str(resolve(path))
    except DataPathError as error:
        raise DataPathError(f"{field}: {error}") from None
