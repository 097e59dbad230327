"""The private directory of each job: `<data_dir>/jobs/<id>`, mode 0700.

While a job lives, its directory holds the specification, the journal, the log and in the end the
result. From an ended job the small files stay (specification, journal, log, result) for whoever
asks why; everything else, above all the model, is removed: it lives in the registry now, or nobody
wants it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from modelrail.names import InvalidName, TrainingJobName
from modelrail_trainer.execution.processes.executor import LOG_NAME
from modelrail_trainer.execution.processes.output import printable
from modelrail_trainer.failure.redaction import without_directories
from modelrail_trainer.handover.artifact import CHECKPOINTS_NAME, RESULT_NAME, has_result
from modelrail_trainer.handover.job_file import NotAJobFileError, job_file_status, open_job_file
from modelrail_trainer.handover.journal import JOURNAL_NAME
from modelrail_trainer.isolation.limits import CPU_TIME_UP_NAME

SPECIFICATION_NAME = "spec.binpb"
_KEPT = frozenset({SPECIFICATION_NAME, JOURNAL_NAME, RESULT_NAME, LOG_NAME})
_TAIL_BYTES = 4096
_TAIL_CHARACTERS = 1500


class JobDirectories:
    """The directories of all jobs.

    Args:
        root: Where they are made; exists.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def root(self) -> Path:
        """Where the directories are."""
        return self._root

    def path(self, name: TrainingJobName) -> Path:
        """Returns the directory of a job. The service makes the ids, without separators."""
        return self._root / name.training_job

    def prepare(self, name: TrainingJobName, specification: bytes) -> Path:
        """Makes a directory with the specification in it.

        Of what an earlier attempt left the checkpoints stay, and everything else goes.

        Raises:
            OSError: The disk does not take it.
        """
        directory = self.path(name)
        directory.mkdir(mode=0o700, exist_ok=True)
        # mkdir's mode is subject to the umask, which may be stricter than the worker can live with;
        # an earlier attempt may have locked the directory.
        directory.chmod(0o700)
        for entry in directory.iterdir():
            if entry.name != CHECKPOINTS_NAME:
                _remove(entry)
        descriptor = os.open(
            directory / SPECIFICATION_NAME, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600
        )
        with os.fdopen(descriptor, "wb") as file:
            file.write(specification)
        return directory

    def trim(self, name: TrainingJobName) -> None:
        """Removes everything that an ended job does not need. Repeating it changes nothing."""
        directory = self.path(name)
        if not directory.is_dir():
            return
        for entry in _surplus(directory):
            _remove(entry)

    def untrimmed(self) -> list[TrainingJobName]:
        """Returns the jobs whose directories hold what an ended job does not need."""
        return [name for name, is_trimmed in self._all() if not is_trimmed]

    def trimmed(self) -> list[TrainingJobName]:
        """Returns the jobs whose directories hold only what an ended job needs."""
        return [name for name, is_trimmed in self._all() if is_trimmed]

    def _all(self) -> Iterator[tuple[TrainingJobName, bool]]:
        for directory in self._root.iterdir():
            try:
                name = TrainingJobName(directory.name)
            except InvalidName:
                continue
            if directory.is_dir():
                yield name, next(_surplus(directory), None) is None

    def remove(self, name: TrainingJobName) -> None:
        """Removes the directory with all that is in it, if there is one."""
        if self.path(name).is_dir():
            _remove_tree(self.path(name))

    def has_result(self, name: TrainingJobName) -> bool:
        """Whether the job's process finished its result, which it moves into place last."""
        return has_result(self.path(name))

    def free_bytes(self) -> int:
        """Returns how much room is left where the directories are."""
        return shutil.disk_usage(self._root).free

    def log_bytes(self, name: TrainingJobName) -> int:
        """Returns the size of the process's log; 0 when there is none."""
        found = job_file_status(self.path(name), LOG_NAME)
        return 0 if found is None else found.st_size

    def used_up_cpu_time(self, name: TrainingJobName) -> bool:
        """Whether a process of the job said that its CPU time was up."""
        found = job_file_status(self.path(name), CPU_TIME_UP_NAME)
        return found is not None and found.st_size > 0

    def log_tail(self, name: TrainingJobName) -> str:
        """Returns the last lines of the process's log for people, without paths; may be empty."""
        try:
            with open_job_file(self.path(name), LOG_NAME) as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - _TAIL_BYTES))
                text = log.read(_TAIL_BYTES).decode(errors="replace")
        except (FileNotFoundError, NotAJobFileError):
            return ""
        return without_directories(printable(text)).strip()[-_TAIL_CHARACTERS:]


def _remove(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        _remove_tree(entry)
    else:
        entry.unlink(missing_ok=True)


def _remove_tree(directory: Path) -> None:
    def fail(_function: object, _path: str, error: tuple[object, BaseException, object]) -> None:
        # A job that has just ended may be trimmed and deleted at the same time.
        if not isinstance(error[1], FileNotFoundError):
            raise error[1]

    shutil.rmtree(directory, onerror=fail)


def _surplus(directory: Path) -> Iterator[Path]:
    """Yields what is removed from the directory of a job that has ended."""
    return (entry for entry in directory.iterdir() if entry.name not in _KEPT)
