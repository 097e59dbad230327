"""The executor of this machine: job processes, started so that none is ever lost."""

from __future__ import annotations

import math
import os
import site
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from modelrail.names import InvalidName, TrainingJobName
from modelrail_server.file_limit import restore_file_limit
from modelrail_trainer.execution.processes.executor import LOG_NAME
from modelrail_trainer.execution.processes.process import JobProcess, ProcessIdentity, identify
from modelrail_trainer.handover.pulse import SHOW_AND_END
from modelrail_trainer.isolation.confinement import Confinement
from modelrail_trainer.isolation.limits import JobLimits

JOB_DIRECTORY = "--job-directory"
# What Python and its numeric libraries need. Everything else stays out, above all credentials.
_INHERITED = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "PYTHONPATH", "LD_LIBRARY_PATH")
_DEVICES = ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES")
# The process waits at this gate until its identity is in the database. Should the trainer die
# before that, the pipe closes, `read` fails, and the worker never starts: it is never orphaned.
_GATE = 'read -r _ && exec "$@" </dev/null'
# Without -P a file in the job's directory could stand in for a module.
_CONFINE = (sys.executable, "-P", "-m", "modelrail_trainer.isolation")
# How often, and how long after each other, a process without a command is looked at.
_LOOKS, _LOOK_SECONDS = 50, 0.002


def _torchrun(processes: int, stop_grace_seconds: float) -> tuple[str, ...]:
    """Returns what stands between Python and the worker program, to run it so many times."""
    return (
        *("-m", "torch.distributed.run", "--nnodes", "1", "--nproc-per-node", str(processes)),
        # What `--standalone` means, without names: a job may not read /etc/hosts.
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--rdzv-id", "job"),
        *("--local-addr", "127.0.0.1"),
        # A job is started again by the trainer, which knows what may help.
        *("--max-restarts", "0"),
        # What ends the agent ends its processes in the same way, and gives them as much time.
        *("--shutdown-timeout", str(math.ceil(stop_grace_seconds))),
        *("--signals-to-handle", f"SIGTERM,SIGINT,SIGHUP,SIGQUIT,{SHOW_AND_END.name}"),
    )


class LocalExecutor:
    """Runs jobs as processes of this machine.

    Args:
        command: The worker program; `--job-directory DIR` is added to it.
        threads_per_job: Processor cores that one job may use.
        limits: What one job may take of the machine.
        environ: The service's environment, of which a few variables are handed on.
        readable: Files and directories that jobs may read beside those of Python and the system.
        hidden: Files and directories that jobs must not read, wherever they lie.
        stop_grace_seconds: Time that the processes of a job have between SIGTERM and SIGKILL.
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
        stop_grace_seconds: float = 30.0,
    ) -> None:
        self._command = tuple(command)
        self._threads_per_job = threads_per_job
        self.limits = limits
        self._environ = environ
        self._readable = tuple(readable)
        self._hidden = tuple(hidden)
        self._stop_grace_seconds = stop_grace_seconds

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
            # Else a file in the job's directory could stand in for a module.
            "PYTHONSAFEPATH": "1",
            # Nobody asks for its processes, whose semaphores it would look for in vain.
            "JOBLIB_MULTIPROCESSING": "0",
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "OPENBLAS_NUM_THREADS": threads,
            # Official builds of ONNX Runtime from 1.32 on report their use otherwise.
            "ORT_DISABLE_TELEMETRY": self._environ.get("ORT_DISABLE_TELEMETRY", "1"),
            **network,
        }

    def submit(
        self, directory: Path, options: Sequence[str] = (), *, processes: int = 1
    ) -> JobProcess:
        """Starts a process that waits for its release; of several, torchrun. See `Executor`."""
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
        torchrun = _torchrun(processes, self._stop_grace_seconds) if processes > 1 else ()
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
            # It waits at the gate: nothing of the job has run.
            restore_file_limit(child.pid)
        except BaseException:
            child.kill()
            child.communicate()
            raise
        return JobProcess(identity, child)

    def find(self, handle: str) -> JobProcess | None:
        """Returns a process that was started before; None when it is gone."""
        identity = ProcessIdentity.from_handle(handle)
        return JobProcess(identity, None) if identify(identity.pid) == identity else None

    def executions(self, root: Path) -> list[tuple[TrainingJobName, JobProcess]]:
        """Returns the processes of this user that work in a directory below `root`."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdecimal():
                continue
            try:
                pid = int(entry.name)
                # The guard of a job leads its session, and ends with all that the job started.
                if entry.stat().st_uid != os.geteuid() or os.getsid(pid) != pid:
                    continue
                if (identity := identify(pid)) is None:
                    continue
                words = _command(entry)
                directory = Path(words[words.index(JOB_DIRECTORY) + 1])
                if directory.parent == root:
                    found.append((TrainingJobName(directory.name), JobProcess(identity, None)))
            except (OSError, ValueError, IndexError, InvalidName):
                continue  # It has just ended, or is something else.
        return found


def _command(entry: Path) -> list[str]:
    """Returns the words of a living process's command; while it becomes a program it has none."""
    for _ in range(_LOOKS):
        if command := (entry / "cmdline").read_text(errors="replace"):
            return command.split("\0")
        time.sleep(_LOOK_SECONDS)
    return []
