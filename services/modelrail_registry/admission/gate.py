"""Lets model files in: starts the examination in a limited process, and remembers the answer."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy import delete, insert, select

from modelrail_registry.admission.program import Program
from modelrail_registry.catalog import schema
from modelrail_registry.catalog.database import Database
from modelrail_registry.catalog.documents import load_signature
from modelrail_registry.resources import Signature
from modelrail_server.errors import Unavailable

# Raised when the rules of `admission` change: remembered answers are then asked for again.
_RULES = 2
# Above what the program lets itself print.
_ANSWER_BYTES = 2 << 20
_RETRY_SECONDS = 5.0
_VERDICTS = {
    signal.SIGXCPU: "its examination takes more CPU time than is allowed",
    signal.SIGABRT: "its examination needs more memory than a file of its size may take",
    signal.SIGSEGV: "it crashes the ONNX checker",
    signal.SIGBUS: "it crashes the ONNX checker",
    signal.SIGFPE: "it crashes the ONNX checker",
}

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the examination of a file found.

    Args:
        rejected: Why the file is refused; empty when it is not.
        signature: Signature of the graph; None when the file is refused.
        anonymous: Dimensions (tensor, axis) without size and name in the graph; their symbols are
            made up.
    """

    rejected: str
    signature: Signature | None = None
    anonymous: frozenset[tuple[str, int]] = frozenset()


class Gate:
    """Examines model files.

    Args:
        database: Where answers are remembered.
        executor: Threads for the database, and for the end of an examination.
        processes: Examinations at a time.
        cpu_seconds: CPU time for one of them.
        wall_seconds: Time for one of them.
        command: The program, for tests.
    """

    def __init__(
        self,
        database: Database,
        *,
        executor: Executor,
        processes: int,
        cpu_seconds: int,
        wall_seconds: float,
        command: Sequence[str] = (
            sys.executable,
            "-P",
            "-m",
            "modelrail_registry.admission",
        ),
    ) -> None:
        self._database = database
        self._executor = executor
        self._slots = asyncio.Semaphore(processes)
        self._cpu_seconds = cpu_seconds
        self._wall_seconds = wall_seconds
        self._command = tuple(command)
        self._ruleset = f"{_RULES} onnx {version('onnx')}"

    async def admit(self, sha256: str, path: Path) -> Verdict:
        """Returns what is found in a file, from memory when it was examined before.

        Only what the rules say is remembered, not that a file went beyond a limit or crashed.

        Raises:
            Unavailable: The machine is too busy to tell.
        """
        loop = asyncio.get_running_loop()
        known = await loop.run_in_executor(self._executor, self._recall, sha256)
        if known is None:
            async with self._slots:
                known = await self._examine(path)
            # What a limit or a crash says holds for this time only: the operator may raise the
            # limit, and the machine may have been at fault.
            if known.get("passing"):
                _log.warning("examination cut short", blob=sha256, verdict=known["rejected"])
            else:
                await loop.run_in_executor(self._executor, self._remember, sha256, known)
        return _verdict(known)

    def _recall(self, sha256: str) -> dict[str, Any] | None:
        table = schema.admissions
        with self._database.read() as connection:
            text = connection.execute(
                select(table.c.document).where(
                    table.c.sha256 == sha256, table.c.ruleset == self._ruleset
                )
            ).scalar_one_or_none()
        document: dict[str, Any] | None = None if text is None else json.loads(text)
        return document

    def _remember(self, sha256: str, document: dict[str, Any]) -> None:
        table = schema.admissions
        with self._database.write() as connection:
            # Two publishers of one file may have asked at the same time; answers of
            # older rules go as well.
            connection.execute(delete(table).where(table.c.sha256 == sha256))
            connection.execute(
                insert(table).values(
                    sha256=sha256,
                    ruleset=self._ruleset,
                    admitted="rejected" not in document,
                    document=json.dumps(document),
                    create_time=schema.to_microseconds(datetime.now(UTC)),
                )
            )

    async def _examine(self, path: Path) -> dict[str, Any]:
        command = (*self._command, str(path), str(self._cpu_seconds))
        try:
            program = Program(command, _environment(), self._executor)
        except OSError as error:
            _log.warning("an examination cannot be started", error=str(error))
            raise _too_busy() from error
        try:
            async with asyncio.timeout(self._wall_seconds):
                answer = await program.answer(_ANSWER_BYTES)
        except OSError as error:  # of the pipes, or its time is up
            raise _too_busy() from error
        finally:
            # Shielded: a second cancellation would leave the pipes open.
            await asyncio.shield(asyncio.ensure_future(program.end()))
        if answer is None:
            return _passing("its examination prints more than any signature takes")
        if program.status:
            _log.warning(
                "an examination failed", status=program.status, complaints=program.complaints
            )
        return _document(program.status, answer)


def _document(returncode: int | None, answer: bytes) -> dict[str, Any]:
    if returncode is not None and returncode < 0:
        verdict = _VERDICTS.get(signal.Signals(-returncode))
        if verdict is None:
            raise _too_busy()
        return _passing(verdict)
    if returncode != 0:
        # A broken installation, not a broken model.
        raise RuntimeError(f"the admission program ended with status {returncode}")
    document: dict[str, Any] = json.loads(answer)
    return document


def _passing(verdict: str) -> dict[str, Any]:
    return {"rejected": verdict, "passing": True}


def _environment() -> dict[str, str]:
    # Thread pools of numerical libraries would take the address space that the limit leaves.
    environment = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"}
    for name in ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "HOME"):
        if name in os.environ:
            environment[name] = os.environ[name]
    return environment


def _too_busy() -> Unavailable:
    return Unavailable(
        "the examination of a model file did not come to an end; the machine is too busy",
        reason="ADMISSION_UNFINISHED",
        retry_after_seconds=_RETRY_SECONDS,
    )


def _verdict(document: dict[str, Any]) -> Verdict:
    if "rejected" in document:
        return Verdict(document["rejected"])
    anonymous = set()
    for tensor in (*document["signature"]["inputs"], *document["signature"]["outputs"]):
        for axis, extent in enumerate(tensor["shape"]):
            if extent is None:
                anonymous.add((tensor["name"], axis))
                tensor["shape"][axis] = f"{tensor['name']}_{axis}"
    return Verdict("", load_signature(json.dumps(document["signature"])), frozenset(anonymous))
