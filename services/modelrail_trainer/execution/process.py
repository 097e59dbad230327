"""Job processes: started so that none is ever lost, watched and stopped whoever started them.

A worker outlives the trainer and is adopted by the next one, which is not its parent. So nothing
here relies on parentage: the exit is awaited through a pidfd, and a process is known by pid and
start time.
"""

from __future__ import annotations

import asyncio
import os
import signal
import site
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from modelrail_trainer.isolation.confinement import Confinement
from modelrail_trainer.isolation.limits import JobLimits
from modelrail_trainer.jobs.job import ProcessIdentity
from modelrail_trainer.pulse import SHOW_AND_END

LOG_NAME = "worker.log"
JOB_DIRECTORY = "--job-directory"
# What Python and its numeric libraries need. Everything else stays out, above all credentials.
_INHERITED = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "PYTHONPATH", "LD_LIBRARY_PATH")
_DEVICES = ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES")
# The process waits at this gate until its identity is in the database. Should the trainer die
# before that, the pipe closes, `read` fails, and the worker never starts: it is never orphaned.
_GATE = 'read -r _ && exec "$@" </dev/null'
# Without -P a file in the job's directory could stand in for a module.
_CONFINE = (sys.executable, "-P", "-m", "modelrail_trainer.isolation")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class ProcessExit:
    """How a process ended; the code is None for an adopted one, whose status went to its parent.

    Negative codes are signals, as in `subprocess`.

    Attributes:
        code: Exit status.
        cpu_seconds: CPU time of all its threads; 0 where the code is None.
    """

    code: int | None
    cpu_seconds: float = field(default=0.0, compare=False)

    def ran_out_of_cpu_time(self, limit_seconds: int) -> bool:
        """Whether the limit of CPU time ended it; 0 is no limit."""
        # The second limit kills a process that ignores the signal of the first.
        return self.code == -signal.SIGXCPU or (
            self.code == -signal.SIGKILL and 0 < limit_seconds <= self.cpu_seconds
        )

    def __str__(self) -> str:
        if self.code is None:
            return "the process ended"
        if self.code >= 0:
            return f"the process ended with exit code {self.code}"
        try:
            name = signal.Signals(-self.code).name
        except ValueError:
            name = f"signal {-self.code}"
        hint = ", as the kernel does when memory runs out" if name == "SIGKILL" else ""
        return f"the process was ended by {name}{hint}"


def identify(pid: int) -> ProcessIdentity | None:
    """Returns the identity of a living process; None when there is none, or only its remains."""
    fields = _stat(pid)
    if fields is None or fields[0] in {"Z", "X"}:
        return None
    return ProcessIdentity(pid, int(fields[19]), _BOOT_ID.read_text().strip())


def _stat(pid: int) -> list[str] | None:
    """Returns `/proc/PID/stat` from its third field, the state, on."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The second field is the program's name in parentheses, and may hold blanks and parentheses.
    return text.rpartition(")")[2].split()


def _cpu_seconds(pid: int) -> float:
    fields = _stat(pid)
    if fields is None:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class JobProcess:
    """One process in a session of its own, with everything that it starts.

    Use as an asynchronous context manager on the loop that awaits its exit. Leaving the context
    lets go of the process and does not end it.
    """

    def __init__(self, identity: ProcessIdentity, child: subprocess.Popen[bytes] | None) -> None:
        self.identity = identity
        self._child = child
        self._exited = asyncio.Event()
        self._pidfd = -1

    async def __aenter__(self) -> Self:
        try:
            self._pidfd = os.pidfd_open(self.identity.pid)
        except ProcessLookupError:
            self._exited.set()
            return self
        if self._child is None and identify(self.identity.pid) != self.identity:
            # The pid was given to another process between two looks.
            self._exited.set()
        else:
            asyncio.get_running_loop().add_reader(self._pidfd, self._on_exit)
        return self

    async def __aexit__(self, *error: object) -> None:
        if self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
        self._close_gate()

    def _on_exit(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        self._exited.set()

    def release(self) -> None:
        """Lets a process that `spawn` started run its command."""
        if self._child is None or self._child.stdin is None:
            return
        # With a broken pipe it died at the gate; the exit tells how.
        with suppress(BrokenPipeError):
            self._child.stdin.write(b"\n")
            self._child.stdin.flush()
        self._close_gate()

    def _close_gate(self) -> None:
        if self._child is not None and self._child.stdin is not None:
            with suppress(BrokenPipeError):
                self._child.stdin.close()

    @property
    def exit_event(self) -> asyncio.Event:
        """Set when the process has ended."""
        return self._exited

    @property
    def exited(self) -> bool:
        """Whether the process has ended."""
        return self._exited.is_set()

    async def wait(self) -> ProcessExit:
        """Waits for the end of the process, ends what it left running, and tells how it ended."""
        await self._exited.wait()
        self._signal_group(signal.SIGKILL)
        if self._child is None:
            return ProcessExit(None)
        # The times can be read until the status is collected, which is all that is left to do.
        cpu_seconds = _cpu_seconds(self.identity.pid)
        return ProcessExit(self._child.wait(), cpu_seconds)

    async def stop(
        self, grace_seconds: float, *, first: signal.Signals = signal.SIGTERM
    ) -> ProcessExit:
        """Ends the process: `first` to the whole group, and after `grace_seconds` SIGKILL."""
        self._signal_group(first)
        try:
            async with asyncio.timeout(grace_seconds):
                await self._exited.wait()
        except TimeoutError:
            self._signal_group(signal.SIGKILL)
        return await self.wait()

    def _signal_group(self, number: signal.Signals) -> None:
        """Signals every process of the group, unless its number was given to strangers."""
        pid = self.identity.pid
        if self._child is None:
            fields = _stat(pid)
            # While one member lives, the kernel gives the number to nobody else. So another start
            # time means that no member is left.
            if fields is not None and int(fields[19]) != self.identity.start_ticks:
                return
        elif self._child.returncode is not None:
            return
        with suppress(ProcessLookupError):
            os.killpg(pid, number)


def _torchrun(processes: int) -> tuple[str, ...]:
    """Returns what stands between Python and the worker program, to run it so many times."""
    return (
        *("-m", "torch.distributed.run", "--nnodes", "1", "--nproc-per-node", str(processes)),
        # What `--standalone` means, without names: a job may not read /etc/hosts.
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--rdzv-id", "job"),
        *("--local-addr", "127.0.0.1"),
        # A job is started again by the trainer, which knows what may help.
        *("--max-restarts", "0"),
        # What ends the agent ends its processes in the same way.
        *("--signals-to-handle", f"SIGTERM,SIGINT,SIGHUP,SIGQUIT,{SHOW_AND_END.name}"),
    )


class ProcessLauncher:
    """Starts job processes.

    Args:
        command: The worker program; `--job-directory DIR` is added to it.
        threads_per_job: Processor cores that one job may use.
        limits: What one job may take of the machine.
        environ: The service's environment, of which a few variables are handed on.
        readable: Files and directories that jobs may read beside those of Python and the system.
        hidden: Files and directories that jobs must not read, wherever they lie.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        threads_per_job: int,
        limits: JobLimits,
        environ: Mapping[str, str],
        readable: Sequence[Path] = (),
        hidden: Sequence[Path] = (),
    ) -> None:
        self._command = tuple(command)
        self._threads_per_job = threads_per_job
        self.limits = limits
        self._environ = environ
        self._readable = tuple(readable)
        self._hidden = tuple(hidden)

    def environment(self, directory: Path, processes: int = 1) -> dict[str, str]:
        """Returns the environment of a job in `directory`: what Python needs, and no more."""
        threads = str(max(1, self._threads_per_job // processes))
        # The processes of a job meet on this machine alone, whatever its name resolves to.
        network = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"} if processes > 1 else {}
        return {
            **{
                name: self._environ[name] for name in _INHERITED + _DEVICES if name in self._environ
            },
            "HOME": str(directory),
            "TMPDIR": str(directory),
            # HOME moved, and packages that `pip install --user` put under the old one did not.
            "PYTHONUSERBASE": site.getuserbase(),
            "PYTHONUNBUFFERED": "1",
            # Nobody asks for its processes, whose semaphores it would look for in vain.
            "JOBLIB_MULTIPROCESSING": "0",
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "OPENBLAS_NUM_THREADS": threads,
            # Official builds of ONNX Runtime from 1.32 on report their use otherwise.
            "ORT_DISABLE_TELEMETRY": self._environ.get("ORT_DISABLE_TELEMETRY", "1"),
            **network,
        }

    def spawn(
        self, directory: Path, options: Sequence[str] = (), *, processes: int = 1
    ) -> JobProcess:
        """Starts a process that waits for `JobProcess.release`. Blocks for the time of a fork.

        Args:
            directory: Where it works.
            options: For the worker program, beside those of every job.
            processes: How many train together; more than one are started by torchrun.

        Raises:
            OSError: The process cannot be started.
        """
        environment = self.environment(directory, processes)
        confinement = Confinement(
            directory=directory,
            limits=self.limits,
            variables=tuple(environment),
            readable=self._readable,
            hidden=self._hidden,
            has_tcp=processes > 1,
        )
        program, *arguments = self._command
        torchrun = _torchrun(processes) if processes > 1 else ()
        with (directory / LOG_NAME).open("ab") as log:
            (directory / LOG_NAME).chmod(0o600)
            # The service chooses command and directory; nothing in them comes from a client.
            child = subprocess.Popen(  # noqa: S603
                [
                    *("/bin/sh", "-c", _GATE, "modelrail-job"),
                    *_CONFINE,
                    confinement.to_json(),
                    *(program, *torchrun, *arguments),
                    *(JOB_DIRECTORY, str(directory)),
                    *options,
                ],
                cwd=directory,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                umask=0o077,
            )
        try:
            identity = identify(child.pid)
            if identity is None:
                raise OSError(f"the process of the job ended at once with {child.wait()}")
        except BaseException:
            child.kill()
            child.communicate()
            raise
        return JobProcess(identity, child)
