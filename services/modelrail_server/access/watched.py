"""Files that are read again when they change, keeping the last good content."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import structlog

__all__ = ["WatchedFiles"]

T = TypeVar("T")

_log = structlog.get_logger()

_Stamp = tuple[tuple[int, ...], ...]


class WatchedFiles(Generic[T]):
    """What `load` makes of some files, made again after they changed.

    Nothing runs in the background: whoever asks for the content pays for a `stat` at most once in
    `interval_seconds`. Kubernetes swaps mounted files by symbolic link, which changes the inode.

    Args:
        files: The files; all are looked at, so that certificate and key change together.
        load: Reads them.
        name: What logs and metrics call them.
        on_error: Told each time that changed files could not be used.
        interval_seconds: Shortest pause between two looks.
        clock: Seconds that only grow.

    Raises:
        Exception: What `load` raises, for the first content: a server does not start on bad files.
    """

    def __init__(
        self,
        files: Sequence[Path],
        load: Callable[[], T],
        *,
        name: str,
        on_error: Callable[[], None] = lambda: None,
        interval_seconds: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._files = tuple(files)
        self._load = load
        self._name = name
        self._on_error = on_error
        self._interval_seconds = interval_seconds
        self._clock = clock
        # The stamp comes before the content: a change in between is seen at the next look.
        self._stamp = self._current_stamp()
        self._content = load()
        self._next_look = clock() + interval_seconds

    def content(self) -> T:
        """Returns the newest content that could be used."""
        now = self._clock()
        if now >= self._next_look:
            self._next_look = now + self._interval_seconds
            self._look()
        return self._content

    def _look(self) -> None:
        try:
            stamp = self._current_stamp()
            if stamp == self._stamp:
                return
            # Taken before the content is good: a bad file is told of once, not at every look.
            self._stamp = stamp
            self._content = self._load()
            _log.info("file was read again", file=self._name)
        except Exception as error:  # noqa: BLE001 whatever is wrong with the new files, the old content stays
            self._on_error()
            _log.error("changed file cannot be used", file=self._name, problem=str(error))

    def _current_stamp(self) -> _Stamp:
        stats = [file.stat() for file in self._files]
        # The mode as well: a file that becomes readable by everybody is no good key file any more.
        return tuple((s.st_dev, s.st_ino, s.st_mode, s.st_size, s.st_mtime_ns) for s in stats)
