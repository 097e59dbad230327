"""Jobs that take without end: only the job dies, with a reason, and the trainer goes on."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from modelrail.trainer.v1 import trainer_pb2 as pb
from tests.faults.scripted import ScriptedTrainer, scripted_trainer
from tests.postgresql import unprivileged

Job = pb.TrainingJob
Error = pb.JobError

# What the job does is its display name. A job that is well behaved says so, and ends.
WORKER = """
import os, signal, sys, threading, traceback
from pathlib import Path
from modelrail.trainer.v1 import trainer_pb2
from modelrail_trainer.handover import journal
from modelrail_trainer.isolation import layer

directory = Path(sys.argv[sys.argv.index("--job-directory") + 1])
fault = trainer_pb2.TrainingJobSpec.FromString((directory / "spec.binpb").read_bytes()).display_name
with journal.JournalWriter(directory / "events.jsonl") as log:
    log.write(journal.PhaseEvent(journal.Phase.PREPARING))
    log.write(journal.PhaseEvent(journal.Phase.RUNNING))
    try:
        match fault:
            case "takes memory":
                held = [bytearray(1 << 24) for _ in range(256)]
            case "takes memory in a library":
                sys.stderr.write("terminate called after throwing an instance of 'std::bad_alloc'")
                sys.stderr.flush()
                os.abort()
            case "exports without memory":
                print("the exporter failed: MemoryError: no message")
                log.write(journal.FailedEvent(journal.FailureReason.EXPORT_FAILED, "it failed"))
                sys.exit(3)
            case "computes for ever":
                while True:
                    pass
            case "computes for ever and ignores it":
                signal.signal(signal.SIGXCPU, signal.SIG_IGN)
                while True:
                    pass
            case "prints for ever":
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                while True:
                    print("x" * 10_000)
            case "lies":
                walls = tuple(layer.Layer(name, True, "a lie") for name in layer.LayerName)
                log.write(journal.IsolationEvent(walls))
            case "forks":
                for _ in range(64):
                    if os.fork() == 0:
                        signal.pause()
            case "dies of a strange hand":
                os.kill(os.getpid(), signal.SIGKILL)
        log.write(journal.FailedEvent(journal.FailureReason.DATA, "all is well"))
    except Exception as error:
        traceback.print_exc()
        log.write(journal.FailedEvent(journal.FailureReason.INTERNAL, type(error).__name__))
"""


async def assert_serves_on(trainer: ScriptedTrainer) -> None:
    assert (await trainer.run("behaves")).error.message == "all is well"


async def test_a_job_that_takes_memory_without_end_fails_as_that(tmp_path: Path) -> None:
    async with scripted_trainer(tmp_path, WORKER, max_job_memory_bytes=256 << 20) as served:
        job = await served.run("takes memory")
        assert (job.state, job.error.reason) == (Job.STATE_FAILED, Error.REASON_OOM)
        assert "--max-job-memory-bytes" in job.error.message
        await assert_serves_on(served)


async def test_memory_that_runs_out_in_the_export_is_told_as_that(tmp_path: Path) -> None:
    async with scripted_trainer(tmp_path, WORKER, max_job_memory_bytes=256 << 20) as served:
        job = await served.run("exports without memory")
        assert job.error.reason == Error.REASON_OOM


async def test_memory_that_runs_out_in_native_code_is_told_as_that(tmp_path: Path) -> None:
    async with scripted_trainer(tmp_path, WORKER) as served:
        job = await served.run("takes memory in a library")
        assert job.error.reason == Error.REASON_OOM
        assert "machine" in job.error.message


@pytest.mark.parametrize("manner", ["", " and ignores it"])
async def test_a_job_that_computes_for_ever_fails_when_its_time_is_up(
    tmp_path: Path, manner: str
) -> None:
    async with scripted_trainer(tmp_path, WORKER, max_job_cpu_seconds=1) as served:
        job = await served.run(f"computes for ever{manner}")
        assert (job.state, job.error.reason) == (Job.STATE_FAILED, Error.REASON_TIMEOUT)
        assert "--max-job-cpu-seconds" in job.error.message
        await assert_serves_on(served)


async def test_a_kill_within_the_time_is_not_told_as_a_timeout(tmp_path: Path) -> None:
    async with scripted_trainer(tmp_path, WORKER, max_job_cpu_seconds=60) as served:
        job = await served.run("dies of a strange hand")
    assert job.error.reason == Error.REASON_PROCESS_DIED
    assert "SIGKILL" in job.error.message


async def test_a_job_that_prints_for_ever_fails_and_says_so(tmp_path: Path) -> None:
    most = 512 << 20
    limits = {"max_job_log_bytes": 1 << 20, "max_job_file_bytes": most}
    async with scripted_trainer(tmp_path, WORKER, **limits) as served:
        job = await served.run("prints for ever")
        assert (job.state, job.error.reason) == (Job.STATE_FAILED, Error.REASON_PROCESS_DIED)
        assert f"more than {1 << 20} bytes of output" in job.error.message
        (log,) = (tmp_path / "data").glob("jobs/*/worker.log")
        assert log.stat().st_size < most  # it was stopped long before
        await assert_serves_on(served)


async def test_output_that_fills_its_file_fails_as_that_too(tmp_path: Path) -> None:
    async with scripted_trainer(tmp_path, WORKER, max_job_file_bytes=1 << 20) as served:
        job = await served.run("prints for ever")
    assert job.error.reason == Error.REASON_PROCESS_DIED
    assert f"more than {1 << 20} bytes of output" in job.error.message


async def test_a_job_shows_the_layers_around_it_and_no_lies_about_them(tmp_path: Path) -> None:
    async with scripted_trainer(tmp_path, WORKER, max_job_cpu_seconds=60) as served:
        job = await served.run("lies")
    layers = {pb.IsolationLayer.Name.Name(layer.name): layer for layer in job.isolation}
    assert set(layers) == set(pb.IsolationLayer.Name.keys()) - {"NAME_UNSPECIFIED"}
    assert layers["NAME_CPU_TIME"].active
    assert layers["NAME_CPU_TIME"].detail == "RLIMIT_CPU, 60 s for each process"
    assert not layers["NAME_MEMORY"].active


def test_a_job_that_forks_without_end_is_refused_more() -> None:
    user = unprivileged()  # the kernel does not count the processes of root (RLIMIT_NPROC)
    # Not pytest's own folder: nobody may enter that.
    with tempfile.TemporaryDirectory(prefix="forks-") as folder:
        if user:
            os.chown(folder, user["user"], user["group"])  # type: ignore[arg-type]
        try:
            done = subprocess.run(
                [sys.executable, "-c", REFUSE_FORKS, folder],
                cwd=Path(__file__).parents[2],
                stderr=subprocess.PIPE,
                timeout=120,
                check=False,
                **user,  # type: ignore[call-overload]
            )
        except PermissionError as error:
            pytest.skip(f"only root can run this Python, or read this repository: {error}")
    assert done.returncode == 0, done.stderr.decode()


REFUSE_FORKS = """
import asyncio, sys
from pathlib import Path
from tests.faults.test_trainer_limits import refuse_forks
asyncio.run(refuse_forks(Path(sys.argv[1])))
"""


async def refuse_forks(path: Path) -> None:
    """Runs a trainer whose job forks without end, and then one that behaves."""
    async with scripted_trainer(path, WORKER, max_job_processes=16) as served:
        job = await served.run("forks")
        assert (job.state, job.error.reason) == (Job.STATE_FAILED, Error.REASON_PROCESS_DIED)
        assert "--max-job-processes" in job.error.message
        await assert_serves_on(served)
