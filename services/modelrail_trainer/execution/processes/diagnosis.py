"""Why a job failed, from what is left of its process: exit status, last words, log.

A limit that is broken rarely names itself: memory that is refused becomes an exception deep in a
library, and output that is refused has no place left to be told.
"""

from __future__ import annotations

from modelrail.names import TrainingJobName
from modelrail_trainer.execution.processes.directory import JobDirectories
from modelrail_trainer.execution.processes.executor import ProcessExit
from modelrail_trainer.isolation.limits import JobLimits
from modelrail_trainer.jobs.job import JobError
from modelrail_trainer.jobs.state import Reason

# Reasons that a worker gives for whatever an exception stopped.
_VAGUE = frozenset({Reason.INTERNAL, Reason.EXPORT_FAILED, Reason.USER_CODE})
# What Python, numpy, torch, the C++ library and the system say when memory is refused.
_OUT_OF_MEMORY = ("MemoryError", "can't allocate memory", "bad_alloc", "Cannot allocate memory")
_OUT_OF_DEVICE_MEMORY = ("CUDA out of memory",)
_OUT_OF_DISK = ("No space left on device", "Disk quota exceeded")
_LEAST_FREE_BYTES = 64 << 10
"""With less, a job can tell neither its journal nor its log what went wrong."""
# A fork, Python's threads, and the threads of OpenMP that the system refuses.
_OUT_OF_PROCESSES = (
    "Resource temporarily unavailable",
    "can't start new thread",
    "Thread creation failed",
)


def log_overflows(directories: JobDirectories, name: TrainingJobName, limits: JobLimits) -> bool:
    """Whether a job wrote more output than it may, or as much as fits in a file."""
    size = directories.log_bytes(name)
    return size >= limits.file_bytes or 0 < limits.log_bytes < size


def diagnose(
    directories: JobDirectories,
    name: TrainingJobName,
    ended: ProcessExit,
    said: JobError | None,
    limits: JobLimits,
    *,
    is_job: bool = True,
) -> JobError:
    """Returns why a job or errand failed whose process is gone, and what its owner can do.

    Args:
        directories: Where the job's log is.
        name: The job.
        ended: How the process ended.
        said: What the process itself said went wrong.
        limits: What the job was allowed to take.
        is_job: Whether there is a job that can be cloned.
    """
    if said is not None and said.reason not in _VAGUE:
        return said
    if ended.ran_out_of_cpu_time(limits.cpu_seconds) or directories.used_up_cpu_time(name):
        return _out_of_cpu_time(limits)
    if log_overflows(directories, name, limits):
        return _too_much_output(limits)
    tail = directories.log_tail(name)
    if _tells(tail, _OUT_OF_DISK) or directories.free_bytes() < _LEAST_FREE_BYTES:
        return _out_of_disk(is_job=is_job)
    return _refused(tail, limits) or said or _died(ended, tail, is_job=is_job)


def lost_too_often(times: int, tail: str) -> JobError:
    """Returns why a job fails whose process was gone so often when a trainer came back.

    Args:
        times: How often.
        tail: The end of its log.
    """
    return JobError(
        Reason.PROCESS_DIED,
        f"the process was lost with the trainer {times} times and got no further in between; look "
        "in the logs of the trainer and its machine for what ended them, then clone the job, which "
        f"begins anew{_end_of_log(tail)}",
    )


def _out_of_cpu_time(limits: JobLimits) -> JobError:
    return JobError(
        Reason.TIMEOUT,
        f"a process of the job used up its {limits.cpu_seconds} s of CPU time; ask for fewer "
        "epochs or rows, or have the trainer's --max-job-cpu-seconds raised",
    )


def _too_much_output(limits: JobLimits) -> JobError:
    most = min(limits.log_bytes or limits.file_bytes, limits.file_bytes)
    return JobError(
        Reason.PROCESS_DIED,
        f"the job was stopped because it wrote more than {most} bytes of output; let it log less, "
        "or have the trainer's --max-job-log-bytes raised",
    )


def _out_of_disk(*, is_job: bool) -> JobError:
    again = "clone the job" if is_job else "try again"
    return JobError(
        Reason.DISK_FULL, f"the trainer's disk is full; have room made there, then {again}"
    )


def _refused(tail: str, limits: JobLimits) -> JobError | None:
    """Returns what the log says that the process was refused."""
    if _tells(tail, _OUT_OF_DEVICE_MEMORY):
        return JobError(
            Reason.OOM, "the memory of the GPU ran out; ask for smaller batches or a smaller model"
        )
    if _tells(tail, _OUT_OF_MEMORY):
        smaller = "ask for fewer rows, smaller batches or a smaller model"
        if not limits.memory_bytes:
            return JobError(Reason.OOM, f"the machine's memory ran out; {smaller}")
        return JobError(
            Reason.OOM,
            f"the job's {limits.memory_bytes} bytes of memory ran out; {smaller}, or have the "
            "trainer's --max-job-memory-bytes raised",
        )
    if limits.processes and _tells(tail, _OUT_OF_PROCESSES):
        return JobError(
            Reason.PROCESS_DIED,
            "the job was refused another process or thread; have the trainer's "
            "--max-job-processes raised if it needs so many",
        )
    return None


def _died(ended: ProcessExit, tail: str, *, is_job: bool) -> JobError:
    again = "try again"
    if is_job:
        again = "clone the job, or train it with more --max-retries to have it run again by itself"
    return JobError(
        Reason.PROCESS_DIED, f"{ended} before there was a result; {again}{_end_of_log(tail)}"
    )


def _end_of_log(tail: str) -> str:
    return f"; the end of its log:\n{tail}" if tail else "; its log is empty"


def _tells(tail: str, marks: tuple[str, ...]) -> bool:
    return any(mark in tail for mark in marks)
