"""Where the rows come from, how they are divided, and what is done to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from modelrail_trainer.encodings import ColumnEncoding, TextEncoding
from modelrail_trainer.facts import DatasetFacts, Task
from modelrail_trainer.rules.bounds import zeros_replaced

BUNDLED_DATASETS = {
    "digits": DatasetFacts(task=Task.CLASSIFICATION, rows=1797, row_shape=(8, 8), outputs=10)
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BundledDataset:
    """A data set that comes with the trainer, by name."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LineDataset:
    """Points (x, slope · x + intercept + noise), with x evenly spaced."""

    slope: float
    intercept: float
    points: int
    minimum_x: float = -1.0
    maximum_x: float = 1.0
    noise_stddev: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TableColumn:
    """One column to predict from; without an encoding it gets the default of its type."""

    name: str
    encoding: ColumnEncoding | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TableDataset:
    """Rows of a table in files. Fields as in `modelrail.trainer.v1.TableDataset`."""

    paths: tuple[str, ...]
    target: str
    columns: tuple[TableColumn, ...] = ()
    skip_unusable_rows: bool = False


BYTE_VALUES = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class LinesDataset:
    """Text files as one stream of bytes, in windows of so many of them."""

    paths: tuple[str, ...]
    context_length: int = 256


class Color(StrEnum):
    """Channels of a pixel."""

    GREY = "grey"
    RGB = "rgb"


class PixelScale(StrEnum):
    """How pixels become numbers for the network."""

    STANDARDIZED = "standardized"
    UNIT = "unit"
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFolder:
    """A folder of images for each class.

    Attributes:
        path: Of the folder that they lie in.
        divided: Whether folders for the parts lie between.
        readable: The folders that links may lead into, once `path` is resolved.
    """

    path: str
    divided: bool = False
    readable: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class IdxFiles:
    """Images in files of the idx format. Fields as in `modelrail.trainer.v1.IdxFiles`."""

    images: str
    labels: str
    test_images: str = ""
    test_labels: str = ""
    class_names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSize:
    """Height and width of an image in pixels."""

    height: int
    width: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageDataset:
    """Images in files, each of one class. Fields as in `modelrail.trainer.v1.ImageDataset`.

    No colour: that of the first training image. No size: all images have one.
    """

    source: ImageFolder | IdxFiles | None
    color: Color | None = None
    size: ImageSize | None = None
    scale: PixelScale = PixelScale.STANDARDIZED
    skip_unusable_images: bool = False


PARTS = ("train", "validation", "test")
"""The parts that rows are divided into, as a column of a table names them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CustomDataset:
    """Rows that a function of the job's owner makes.

    Attributes:
        entry_point: `module:function`.
        arguments: What it is given by name, as JSON values.
    """

    entry_point: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """How the rows are divided. Fields as in `modelrail.trainer.v1.Split`.

    A fraction is 0 where something else says which rows are in its part.
    """

    validation_fraction: float = 0.15
    test_fraction: float = 0.15
    seed: int = 0
    column: str = ""
    group_column: str = ""
    validation_paths: tuple[str, ...] = ()
    test_paths: tuple[str, ...] = ()

    @property
    def own_columns(self) -> tuple[str, ...]:
        """The columns of a table that divide it, and that nothing is learned from."""
        return tuple(name for name in (self.column, self.group_column) if name)

    @property
    def own_paths(self) -> tuple[str, ...]:
        """The files of the validation part, and then those of the test part."""
        return (*self.validation_paths, *self.test_paths)


# None stands for a oneof in which nothing was set; `validate` refuses it.
Dataset = (
    BundledDataset | LineDataset | TableDataset | ImageDataset | LinesDataset | CustomDataset | None
)


def dataset_with_defaults(dataset: Dataset) -> Dataset:
    """Returns the data set with every zero that means a default replaced by it."""
    if isinstance(dataset, LineDataset) and dataset.minimum_x == dataset.maximum_x == 0:
        return replace(dataset, minimum_x=-1.0, maximum_x=1.0)
    if isinstance(dataset, TableDataset):
        columns = (
            replace(c, encoding=_encoding_with_defaults(c.encoding)) for c in dataset.columns
        )
        return replace(dataset, columns=tuple(columns))
    if isinstance(dataset, LinesDataset):
        return zeros_replaced(dataset)
    return dataset


def _encoding_with_defaults(encoding: ColumnEncoding | None) -> ColumnEncoding | None:
    if isinstance(encoding, TextEncoding) and encoding.tokens is not None:
        encoding = replace(encoding, tokens=zeros_replaced(encoding.tokens))
    return encoding and zeros_replaced(encoding)


def split_with_defaults(split: Split) -> Split:
    """Returns the split with every zero that means a default replaced by it."""
    validation, test = split.validation_fraction, split.test_fraction
    if not (split.column or split.validation_paths):
        validation = validation or 0.15
    if not (split.column or split.test_paths):
        test = test or 0.15
    return replace(split, validation_fraction=validation, test_fraction=test)


def facts_of(dataset: Dataset) -> DatasetFacts | None:
    """Returns what is known about a data set before it is read; None when nothing is."""
    match dataset:
        case BundledDataset(name=name):
            return BUNDLED_DATASETS.get(name)
        case LineDataset(points=points):
            return DatasetFacts(task=Task.REGRESSION, rows=points, row_shape=(1,), outputs=1)
        case LinesDataset(context_length=length):
            return DatasetFacts(
                task=Task.LANGUAGE,
                rows=0,
                row_shape=(length,),
                outputs=BYTE_VALUES,
                tokens=BYTE_VALUES,
            )
        case TableDataset() | ImageDataset() | CustomDataset() | None:
            return None
