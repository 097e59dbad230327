"""The folders that data may be read from, and the files below them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from modelrail_trainer.spec import LinesDataset, TableDataset, TrainingJobSpec


class DataPathError(ValueError):
    """A path leads to no file that may be read; the message is for the owner of the job."""


class DataRoots:
    """The folders that the operator has opened for training data.

    Args:
        roots: The folders; none means that no files are read.
    """

    def __init__(self, roots: Sequence[Path]) -> None:
        self._roots = tuple(roots)

    def resolve(self, path: str) -> Path:
        """Returns the file that a path of a specification means, with links followed.

        A relative path is looked for below each root in turn. What lies outside is not told from
        what does not exist.

        Raises:
            DataPathError: There is no such file below a root.
        """
        if not self._roots:
            raise DataPathError("this trainer reads no files: it was started without --data-root")
        for root in self._roots:
            try:
                real_root = root.resolve(strict=True)
                file = (real_root / path).resolve(strict=True)
                if file.is_relative_to(real_root) and file.is_file():
                    return file
            except (OSError, ValueError, RuntimeError):  # absent, odd characters, a loop of links
                continue
        raise DataPathError(
            f"expected a file below a --data-root of the trainer, got {path[:200]!r}"
        )


def with_real_paths(spec: TrainingJobSpec, data_roots: DataRoots) -> TrainingJobSpec:
    """Returns the specification with the files that its paths mean.

    Raises:
        DataPathError: A file is not there any more.
    """
    if not isinstance(spec.dataset, TableDataset | LinesDataset):
        return spec
    paths = tuple(str(data_roots.resolve(path)) for path in spec.dataset.paths)
    return replace(spec, dataset=replace(spec.dataset, paths=paths))
