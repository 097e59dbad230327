"""Whose fault an exception is, and how it is told to the job's owner: their own frames alone."""

from __future__ import annotations

import linecache
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType, TracebackType
from typing import NoReturn

import torch

from modelrail_trainer.code_roots import CodeRoots
from modelrail_trainer.failure import (
    ExportFailed,
    GateFailed,
    JobFailure,
    UserCodeError,
)
from modelrail_trainer.failure.redaction import without_directories
from modelrail_trainer.worker.learning.replicas import tells_of_a_lost_replica
from modelrail_trainer.worker.network import Network

EXIT_USER_CODE = 3
_INSTEAD_OF_AN_END = "return what was asked for, or raise an exception that says why not"
_NOT_ALLOWED = (
    "a job writes in the folder that it runs in and nowhere else, and reads what lies there, in "
    "the folders of --user-code and --data-root, and what is installed"
)
_EXPORTABLE = (
    "the module has to be made of operations that ONNX has, the same ones whatever the values and "
    "however many rows there are"
)
_PROVABLE = (
    "the export has to compute what the module does, and the module the same for the same rows, "
    "whatever came before"
)
_leave = os._exit
_MAX_FRAMES = 12
_MAX_MESSAGE_CHARACTERS = 1500
# Where the work of a custom module is done, also when it is made of torch's own modules only.
_OF_THE_MODULE: frozenset[CodeType] = frozenset(
    {Network.forward.__code__, torch.Tensor.backward.__code__}
)


class Blame:
    """Turns what goes wrong in user code into a failure that its owner understands.

    Args:
        roots: The folders of user code.
        on_end: Told why, when the code ends the process without an exception.
    """

    def __init__(self, roots: CodeRoots, on_end: Callable[[str], None]) -> None:
        self._roots = roots
        self._on_end = on_end

    @contextmanager
    def on(self, name: str, *, alone: bool = False) -> Iterator[None]:
        """A context in which the code called `name` runs.

        Args:
            name: What runs, for messages.
            alone: Whether nothing else runs here: then every exception is its own.

        Raises:
            UserCodeError: It raised an exception, or asked for the end of the process.
            ExportFailed, GateFailed: What it made has no equal in ONNX.
        """
        before, process = os._exit, os.getpid()

        def told(status: int) -> NoReturn:
            if os.getpid() == process:  # a child that it made ends as it likes
                frames = self._frames(traceback.extract_stack())
                self._on_end(_ended(name, f"os._exit({status})", frames))
                status = EXIT_USER_CODE
            _leave(status)

        os._exit = told
        try:
            yield
        except (ExportFailed, GateFailed) as failure:
            rule = _EXPORTABLE if isinstance(failure, ExportFailed) else _PROVABLE
            raise type(failure)(f"{name}: {rule}; {failure}") from failure
        except JobFailure:
            raise
        except (SystemExit, KeyboardInterrupt) as error:
            called = (
                f"sys.exit({error.code!r})" if isinstance(error, SystemExit) else "an interrupt"
            )
            frames = self._frames(traceback.extract_tb(error.__traceback__))
            raise UserCodeError(_ended(name, called, frames)) from error
        except SyntaxError as error:
            file = self._roots.relative(error.filename) if error.filename else None
            if file is None:
                raise
            line = (error.text or "").strip()[:200]
            raise UserCodeError(
                f"{name}: {type(error).__name__}: {error.msg}\n  File {file!r}, line {error.lineno}"
                + (f"\n    {line}" if line else "")
            ) from error
        except Exception as error:
            if not alone and not self._is_to_blame(error.__traceback__):
                raise
            # In a step back it comes through the module, which has nothing to do with it.
            if tells_of_a_lost_replica(error):
                raise
            raise UserCodeError(self._told(name, error)) from error
        finally:
            os._exit = before

    def _is_to_blame(self, trace: TracebackType | None) -> bool:
        return any(
            frame.f_code in _OF_THE_MODULE or self._roots.relative(frame.f_code.co_filename)
            for frame, _ in traceback.walk_tb(trace)
        )

    def _told(self, name: str, error: Exception) -> str:
        try:
            said = " ".join(str(error).split())
        except Exception:  # noqa: BLE001  # the exception is theirs, too
            said = ""
        said = without_directories(said)[:_MAX_MESSAGE_CHARACTERS]
        kind = f"{type(error).__name__}: {said}" if said else type(error).__name__
        if isinstance(error, PermissionError):
            kind += f"; {_NOT_ALLOWED}"
        return f"{name}: {kind}{self._frames(traceback.extract_tb(error.__traceback__))}"

    def _frames(self, stack: traceback.StackSummary) -> str:
        """Returns the frames that are in the folders, the innermost last, with relative paths."""
        lines = []
        for frame in stack:
            file = self._roots.relative(frame.filename)
            if file is not None:
                line = linecache.getline(frame.filename, frame.lineno or 0).strip()[:200]
                lines.append(f"\n  File {file!r}, line {frame.lineno}, in {frame.name}\n    {line}")
        return "".join(lines[-_MAX_FRAMES:])


def _ended(name: str, called: str, frames: str) -> str:
    return f"{name} ended the process with {called}; {_INSTEAD_OF_AN_END}{frames}"
