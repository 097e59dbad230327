"""The objects that a specification names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from modelrail_trainer.objects.uri import is_uri
from modelrail_trainer.spec import ImageFolder


@dataclass(frozen=True, slots=True)
class NamedObjects:
    """What of a data set lies in object stores.

    Attributes:
        files: URIs of objects, by the field that names them.
        folders: Folders of images whose paths are URIs, by the field that names them.
    """

    files: Mapping[str, str] = field(default_factory=dict)
    folders: Mapping[str, ImageFolder] = field(default_factory=dict)

    @property
    def any(self) -> bool:
        """Whether there are such."""
        return bool(self.files or self.folders)


def named_objects(files: Mapping[str, str], folders: Mapping[str, ImageFolder]) -> NamedObjects:
    """Returns the objects among files and folders, by the field that names them."""
    return NamedObjects(
        {field: path for field, path in files.items() if is_uri(path)},
        {field: folder for field, folder in folders.items() if is_uri(folder.path)},
    )
