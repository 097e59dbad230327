"""Loads models that nobody vouched for in a throw-away process first.

A model file is input of a large parser in native code, and a program: it can crash the process,
compute for ever or take all memory. What does that in a child under limits is not loaded here.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Any, Final

import structlog

from modelrail_inference.model.definition import (
    Loader,
    LoadError,
    TransientLoadError,
    VersionDefinition,
)
from modelrail_inference.runtime.trial.job import TrialJob, TrialLimits
from modelrail_inference.threads.limit import ThreadLimitReached, start_thread

_log = structlog.get_logger(__name__)

_MAX_ANSWER_BYTES = 1 << 16
_MAX_ANSWERS = 4
_ATTEMPTS = 2
_JOIN_SECONDS = 2.0
# What Python and its numeric libraries need. Everything else stays out, above all credentials.
_INHERITED: Final = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "PYTHONPATH", "LD_LIBRARY_PATH")
_ENVIRONMENT: Final = {
    # Arenas reserve address space for each thread, which a limit on address space would count.
    "MALLOC_ARENA_MAX": "1",
    # The process forks, so its libraries must not have threads.
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
}


class _ProcessGoneError(Exception):
    """The process of trial loads ended before it answered."""


class Trials:
    """Trial loads, several at a time. Methods block, and any thread may call them.

    The process of trials starts with the first and ends when there was none for a while.

    Args:
        limits: What one load may take.
        idle_seconds: Time without trials after which the process ends.
    """

    def __init__(self, limits: TrialLimits, *, idle_seconds: float = 30.0) -> None:
        self._limits = limits
        self._idle_seconds = idle_seconds
        self._lock = threading.Lock()
        self._process: _TrialProcess | None = None
        self._closed = False

    @property
    def pid(self) -> int | None:
        """The process of trials; None when there is none."""
        with self._lock:
            return self._process.pid if self._process else None

    def check(self, loader: Loader, definition: VersionDefinition, *, threads: int) -> None:
        """Loads in a child.

        Args:
            loader: What loads; it is copied to the child.
            definition: What is loaded.
            threads: Threads that the session starts.

        Raises:
            LoadError: The load failed as it would here, broke a limit, or crashed.
            TransientLoadError: It took too long, or could not be tried.
        """
        job = pickle.dumps(TrialJob(loader, definition, threads, self._limits))
        for _ in range(_ATTEMPTS):  # the process may have gone in the very moment
            try:
                answer, code = self._attempt(job)
            except _ProcessGoneError:
                continue
            except OSError as error:
                raise TransientLoadError("the trial load could not be started") from error
            _judge(answer, code, self._limits)
            return
        raise TransientLoadError("the process of trial loads ended")

    def close(self) -> None:
        """Ends the process, and with it the trials that run."""
        with self._lock:
            self._closed = True
            process, self._process = self._process, None
        if process is not None:
            process.close()

    def _running(self) -> _TrialProcess:
        with self._lock:
            if self._closed:
                raise _ProcessGoneError
            if self._process is not None and self._process.ended:
                self._process.close()
                self._process = None
            if self._process is None:
                self._process = _TrialProcess(self._idle_seconds)
            return self._process

    def _attempt(self, job: bytes) -> tuple[dict[str, Any], int]:
        """Returns what the child said and its exit status; negative for a signal."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            file = os.memfd_create("trial")
            try:
                with os.fdopen(os.dup(file), "wb") as writer:
                    writer.write(job)
                os.lseek(file, 0, os.SEEK_SET)
                process = self._hand_over(file, theirs.fileno())
            finally:
                os.close(file)
                theirs.close()
            try:
                return self._receive(ours)
            except _ProcessGoneError:
                # Its children hold its sockets open a moment longer, and what it is given until
                # then is lost.
                process.wait()
                raise

    def _hand_over(self, job: int, answers: int) -> _TrialProcess:
        """Gives a job to the process, or to the next if that one turns out to have ended."""
        process = self._running()
        try:
            process.hand_over(job, answers)
        except _ProcessGoneError:  # nothing was tried yet
            process = self._running()
            process.hand_over(job, answers)
        return process

    def _receive(self, answers: socket.socket) -> tuple[dict[str, Any], int]:
        latest = time.monotonic() + self._limits.timeout_seconds
        said: dict[str, Any] = {}
        for _ in range(_MAX_ANSWERS):
            answers.settimeout(max(0.001, latest - time.monotonic()))
            try:
                answer = _parsed(answers.recv(_MAX_ANSWER_BYTES))
            except TimeoutError:  # closing the socket ends the child
                raise TransientLoadError(
                    f"the trial load was stopped after {self._limits.timeout_seconds:g} s"
                ) from None
            except ConnectionError:
                raise _ProcessGoneError from None
            if isinstance(code := answer.get("ended"), int):
                return said, code
            said = answer
        raise LoadError("the trial load answered what nobody asked")


def _parsed(message: bytes) -> dict[str, Any]:
    if not message:
        raise _ProcessGoneError
    try:
        answer = json.loads(message)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


def _judge(answer: dict[str, Any], code: int, limits: TrialLimits) -> None:
    """Raises what the trial has shown; a child that crashed after its answer has shown that."""
    if code == -signal.SIGXCPU:
        raise LoadError(f"the trial load was stopped after {limits.cpu_seconds:g} s of CPU time")
    if answer.get("out_of_memory"):
        raise LoadError(
            f"the trial load needed more than {limits.memory_bytes} bytes of memory beyond its "
            "files"
        )
    if code < 0:
        raise LoadError(f"the trial load was ended by {_signal_name(-code)}")
    if isinstance(reason := answer.get("reason"), str):
        raise TransientLoadError(reason) if answer.get("transient") else LoadError(reason)
    if code or not answer.get("loaded"):
        raise LoadError(f"the trial load ended with exit status {code}")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class _TrialProcess:
    """The process of trial loads, and the thread that waits for its end.

    That thread also starts it: the kernel ends the process when the thread that started it does,
    and threads that load models do not live long.
    """

    def __init__(self, idle_seconds: float) -> None:
        self._arguments = [str(os.getpid()), str(idle_seconds)]
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.settimeout(_JOIN_SECONDS)  # a message is taken at once, unless it hangs
        self._sending = threading.Lock()
        self._started = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(
            target=self._run, args=(theirs,), name="trial-process", daemon=True
        )
        try:
            start_thread(self._thread)
        except ThreadLimitReached:
            theirs.close()
            self._control.close()
            raise
        self._started.wait()
        if self._process is None:
            self._control.close()
            raise OSError("no process could be started")

    @property
    def pid(self) -> int | None:
        """The process, while it runs."""
        return self._process.pid if self._process and not self.ended else None

    @property
    def ended(self) -> bool:
        """Whether the process has ended."""
        return not self._thread.is_alive()

    def hand_over(self, job: int, answers: int) -> None:
        """Gives a job to the process.

        Raises:
            _ProcessGoneError: It has ended.
        """
        with self._sending:
            if self._control.fileno() < 0:
                raise _ProcessGoneError
            try:
                socket.send_fds(self._control, [b"t"], [job, answers])
            except ConnectionError:
                self.wait()  # it is ending
                raise _ProcessGoneError from None

    def wait(self) -> None:
        """Waits for the end of a process that is ending, for a bounded time."""
        self._thread.join(_JOIN_SECONDS)

    def close(self) -> None:
        """Lets the process end by itself, and kills it if it does not."""
        with self._sending:
            self._control.close()
        self._thread.join(_JOIN_SECONDS)
        if self._process is not None and not self.ended:
            self._process.kill()
            self._thread.join(_JOIN_SECONDS)

    def _run(self, theirs: socket.socket) -> None:
        inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        try:
            self._process = subprocess.Popen(  # noqa: S603 - this interpreter and a module of ours
                [sys.executable, "-P", "-m", "modelrail_inference.runtime.trial", *self._arguments],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env=inherited | _ENVIRONMENT,
                start_new_session=True,  # Ctrl-C is for the service
            )
        except OSError as error:
            _log.warning("the process of trial loads did not start", reason=error.strerror)
            return
        finally:
            theirs.close()
            self._started.set()
        code = self._process.wait()
        if code:
            _log.warning("the process of trial loads ended", status=code)
