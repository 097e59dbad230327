"""A file that a job's process left in the job's directory, opened by the service.

The process is confined and the service is not. What it left under a name may be a link that leads
out of the directory, a pipe that nobody writes into, or another thing at every look. So each part
of a path is opened in the one before it, no link is followed, and nothing is waited for.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import TypeVar

from modelrail_trainer.handover.record import Record, as_record

T = TypeVar("T")

# What a name answers that the job has put something else under, or has locked. Other errors tell of
# the machine.
_NOT_OPENED = frozenset(
    {
        errno.EACCES,
        errno.EISDIR,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.ENODEV,
        errno.ENOTDIR,
        errno.ENXIO,
        errno.EPERM,
    }
)
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Opening a pipe for reading waits for a writer otherwise.
_FILE = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC


class NotAJobFileError(ValueError):
    """Under the name lies no plain file of the job's own."""


def open_job_file(directory: Path, path: str) -> BufferedReader:
    """Opens a plain file below a job's directory for reading.

    Args:
        directory: Of the job.
        path: Relative to it, with `/` between the parts.

    Raises:
        FileNotFoundError: There is nothing of that name.
        NotAJobFileError: The path leads out of the directory, or to something that is no plain
            file, has a name elsewhere, or cannot be read.
        OSError: The machine cannot read it now.
    """
    parts = PurePosixPath(path).parts
    if not parts or parts[0] == "/" or ".." in parts:
        raise NotAJobFileError("it does not lie in the job's directory")
    try:
        descriptor = _descend(directory, parts)
    except ValueError as error:  # a NUL, or half a surrogate pair
        raise NotAJobFileError("its name is none of a file") from error
    except OSError as error:
        if error.errno in _NOT_OPENED:
            raise NotAJobFileError("it is no file that may be read") from error
        raise
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise NotAJobFileError("it is no file that may be read")
        # A second name may lie where the job may not read.
        if found.st_nlink > 1:
            raise NotAJobFileError("it has another name")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_job_file(directory: Path, path: str, *, most_bytes: int) -> bytes:
    """Returns the content of a file as `open_job_file` opens it.

    Raises:
        FileNotFoundError: There is nothing of that name.
        NotAJobFileError: As `open_job_file`, or the file is larger than `most_bytes`.
        OSError: The machine cannot read it now.
    """
    with open_job_file(directory, path) as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise NotAJobFileError(f"it is larger than {most_bytes} bytes")
    return content


def read_job_record(
    directory: Path, path: str, read: Callable[[Record], T], *, what: str, most_bytes: int
) -> T | None:
    """Returns what `read` makes of the JSON object in a file; None where nothing lies there.

    Args:
        directory: Of the job.
        path: Below it.
        read: Raises `ValueError` of what it cannot use.
        what: The file is, for the message.
        most_bytes: As in `read_job_file`.

    Raises:
        NotAJobFileError: As `read_job_file`, or it holds something else.
        OSError: The machine cannot read it now.
    """
    try:
        content = read_job_file(directory, path, most_bytes=most_bytes)
    except FileNotFoundError:
        return None
    except NotAJobFileError as error:
        raise NotAJobFileError(f"the {what} cannot be used: {error}") from error
    try:
        return read(as_record(json.loads(content), what))
    # Includes broken JSON, broken UTF-8 and RecordError.
    except (ValueError, RecursionError) as error:
        raise NotAJobFileError(f"the {what} is malformed: {error}") from error


def job_file_status(directory: Path, name: str) -> os.stat_result | None:
    """Returns size and times of what lies under a name, if that is a plain file; nothing is read.

    Raises:
        OSError: The machine cannot look now.
    """
    try:
        found = (directory / name).lstat()
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno in _NOT_OPENED:
            return None
        raise
    return found if stat.S_ISREG(found.st_mode) else None


def _descend(directory: Path, parts: tuple[str, ...]) -> int:
    """Opens a file part by part and returns its descriptor."""
    *folders, name = parts
    folder = os.open(directory, _FOLDER)
    try:
        for part in folders:
            inner = os.open(part, _FOLDER, dir_fd=folder)
            os.close(folder)
            folder = inner
        return os.open(name, _FILE, dir_fd=folder)
    finally:
        os.close(folder)
