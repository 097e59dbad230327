"""URIs of objects, and where their copies lie beside a job."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

SCHEMES = ("s3", "gs", "az")
FOLDER_NAME = "objects"
"""Folder of the copies in a job's directory."""
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_BUCKET = rf"(?:{'|'.join(SCHEMES)})://[a-z0-9][a-z0-9._-]+"
_WHOLE = re.compile(rf"{_BUCKET}(?:/[^/\s?#\\%]+)+")
_FOLDER = re.compile(rf"{_BUCKET}(?:/[^/\s?#\\%]+)*/?")
_FILE_NAME = re.compile(r"[\w.-]{1,200}")


def is_uri(path: str) -> bool:
    """Whether a path of a specification is a URI, of whatever kind."""
    return _SCHEME.match(path) is not None


def is_object_uri(uri: str) -> bool:
    """Whether a URI names an object: scheme, bucket and key, and nothing that needs decoding."""
    return _WHOLE.fullmatch(uri) is not None and not {".", ".."} & set(uri.split("/"))


def is_folder_uri(uri: str) -> bool:
    """Whether a URI names a bucket or a folder of keys in one, with a `/` at its end or without."""
    return _FOLDER.fullmatch(uri) is not None and not {".", ".."} & set(uri.split("/"))


def copy_path(directory: Path, uri: str) -> Path:
    """Returns where the copy of an object, or of a folder of them, lies in the directory of a job.

    That of an object has its name, whose ending tells what is in it, wherever that is a plain one.
    """
    name = uri.rpartition("/")[2]
    if not _FILE_NAME.fullmatch(name) or name.startswith("."):
        name = "object" + "".join(re.findall(r"\.[A-Za-z0-9]{1,10}", name)[-2:])
    digest = hashlib.sha256(uri.encode()).hexdigest()
    return directory / FOLDER_NAME / digest[:32] / name
