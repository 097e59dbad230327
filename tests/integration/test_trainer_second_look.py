"""Results that are not what they say, handed over to a trainer by jobs that forge them.

The jobs' processes follow a script; those that look a second time are real.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path

import psutil
import pytest

from modelrail.client.errors import FailedPrecondition
from modelrail.client.trainer import RunPolicy
from modelrail.trainer.v1 import trainer_pb2 as pb
from modelrail_trainer.isolation.kernel import landlock_version
from tests.handed_over import (
    HandedOver,
    a_path_in_the_graph,
    another_graph,
    another_reference,
    smaller_differences,
)
from tests.integration.house import (
    House,
    ScriptedRegistry,
    TrainerUnderTest,
    line_spec,
    serving_registry,
    states,
)
from tests.job_processes import job_processes

Job = pb.TrainingJob
SECONDS = 60.0

# Hands over what the test wrote. Who looks again stands at a gate first, where there is one, and
# tells what it can read of what is none of its business.
WORKER = """
import shutil, sys
from pathlib import Path
from modelrail_trainer.handover import journal
from modelrail_trainer.worker.__main__ import main

house = Path(__file__).parent
directory = Path(sys.argv[sys.argv.index("--job-directory") + 1])
if "--second-look" in sys.argv:
    assert not [word for word in sys.argv if word.startswith(("--data-root", "--user-code"))]
    if (house / "shared" / "gate").exists():
        (house / "shared" / "gate").open("rb").read()  # until the test opens and closes it
    if (house / "shared" / "spies").exists():
        for path in (house / "code" / "nets.py", house / "data" / "trainer.sqlite3"):
            try:
                path.read_bytes()
            except PermissionError:
                continue
            raise SystemExit("read " + path.name)
    sys.exit(main())
with journal.JournalWriter(directory / "events.jsonl") as log:
    for phase in journal.Phase:
        log.write(journal.PhaseEvent(phase))
    shutil.copytree(house / "shared" / "result", directory, dirs_exist_ok=True)
    log.write(journal.FinishedEvent())
"""


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """What the jobs can read: an honest result, so far."""
    folder = tmp_path / "shared"
    (folder / "result").mkdir(parents=True)
    HandedOver.honest().write(folder / "result")
    return folder


@pytest.fixture
async def house(tmp_path: Path, shared: Path) -> AsyncIterator[House]:
    registry = ScriptedRegistry()  # type: ignore[abstract]  # answers what is asked here
    house = House(tmp_path, registry, worker=WORKER)
    async with serving_registry(registry, house.registry_address):
        yield house


@asynccontextmanager
async def running(house: House, **settings: float) -> AsyncIterator[TrainerUnderTest]:
    async with house.trainer(job_readable_paths=(str(house.tmp_path),), **settings) as trainer:
        yield trainer


def looks(house: House) -> list[psutil.Process]:
    """Returns the processes that look a second time."""
    return job_processes(house.tmp_path / "data" / "second-looks")


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(SECONDS):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


def gone(process: psutil.Process) -> Callable[[], bool]:
    """Returns whether nothing is left of a process; one that is ending may still hold the gate."""
    return lambda: not process.is_running()


def gate_of(shared: Path) -> Path:
    os.mkfifo(shared / "gate")
    return shared / "gate"


async def stands_at(gate: Path) -> int:
    """Waits until somebody stands at the gate; closing what it returns lets them go on."""
    async with asyncio.timeout(SECONDS):
        while True:
            try:
                return os.open(gate, os.O_WRONLY | os.O_NONBLOCK)
            except OSError:  # nobody reads
                await asyncio.sleep(0.02)


async def test_an_honest_result_is_published_and_the_log_tells_of_the_look(house: House) -> None:
    async with running(house) as trainer:
        created = await trainer.create()
        events = await trainer.events(created.name)
        job = await trainer.client.get_job(created.name)
    assert job.state == Job.STATE_SUCCEEDED, job.error
    (told,) = [e.log_line.text for e in events if "second look" in e.log_line.text]
    assert "found what the job says: 10 reference rows, largest difference: y 0.0e+00" in told
    assert [*house.registry.aliases.values()] == [job.model_version]
    assert [*(house.tmp_path / "data" / "second-looks").iterdir()] == []


@pytest.mark.parametrize(
    ("forge", "said"),
    [
        (another_graph, "against the reference: expected 18 within 0.018 at [9, 0], got 27"),
        (a_path_in_the_graph, "model.onnx: the file tells of its source"),
        (another_reference, "against the reference: expected 15"),
        (smaller_differences, "says that output 'y' differs by 0 at most, got 0.009"),
    ],
)
async def test_a_forged_result_fails_its_job_and_publishes_nothing(
    house: House, shared: Path, forge: Callable[[HandedOver], None], said: str
) -> None:
    handed_over = HandedOver.honest()
    forge(handed_over)
    handed_over.write(shared / "result")
    async with running(house) as trainer:
        job = await trainer.ended((await trainer.create()).name)
    assert (job.state, job.error.reason) == (Job.STATE_FAILED, pb.JobError.REASON_GATE_FAILED)
    assert job.error.message.startswith("a second look at its files: ")
    assert said in job.error.message
    assert str(house.tmp_path) not in job.error.message
    assert (house.registry.versions, house.registry.blobs) == ({}, {})


async def test_a_result_is_refused_though_the_registry_is_away(
    tmp_path: Path, shared: Path
) -> None:
    registry = ScriptedRegistry()  # type: ignore[abstract]  # nobody serves it
    handed_over = HandedOver.honest()
    another_graph(handed_over)
    handed_over.write(shared / "result")
    async with running(House(tmp_path, registry, worker=WORKER)) as trainer:
        job = await trainer.ended((await trainer.create()).name)
    assert job.error.reason == pb.JobError.REASON_GATE_FAILED


async def test_a_job_is_cancelled_while_its_files_are_looked_at(house: House, shared: Path) -> None:
    gate = gate_of(shared)
    async with running(house) as trainer:
        created = await trainer.create()
        held = await stands_at(gate)
        with pytest.raises(FailedPrecondition):
            await trainer.client.pause_job(created.name)
        await trainer.client.cancel_job(created.name)
        events = await trainer.events(created.name)
        await until(lambda: not looks(house))
        os.close(held)
    assert states(events)[-3:] == ["REGISTERING", "CANCELLING", "CANCELLED"]
    assert house.registry.versions == {}
    assert [*(house.tmp_path / "data" / "second-looks").iterdir()] == []


async def test_a_look_that_a_stop_of_the_service_ended_is_made_again(
    house: House, shared: Path
) -> None:
    gate = gate_of(shared)
    async with running(house) as trainer:
        created = await trainer.create()
        held = await stands_at(gate)
    assert looks(house) == []
    os.close(held)
    gate.unlink()
    async with running(house) as trainer:
        job = await trainer.ended(created.name)
    assert (job.state, job.attempt) == (Job.STATE_SUCCEEDED, 1)
    assert len(house.registry.versions) == 1


async def test_the_time_of_a_look_is_that_of_its_job(house: House, shared: Path) -> None:
    gate = gate_of(shared)
    async with running(house) as trainer:
        created = await trainer.client.create_job(
            line_spec(), policy=RunPolicy(max_run_seconds=3600)
        )
        held = await stands_at(gate)
    os.close(held)
    # As if an hour had nearly gone by.
    with closing(sqlite3.connect(house.tmp_path / "data" / "trainer.sqlite3")) as database:
        database.execute("UPDATE jobs SET run_seconds = 3599.5")
        database.commit()
    async with running(house) as trainer:
        job = await trainer.ended(created.name)
        assert looks(house) == []
    assert (job.state, job.error.reason) == (Job.STATE_EXPIRED, pb.JobError.REASON_TIMEOUT)
    assert "the second look at its files included" in job.error.message
    assert house.registry.versions == {}


async def test_a_look_without_end_is_ended_and_the_message_says_what_to_do(
    house: House, shared: Path
) -> None:
    gate_of(shared)
    async with running(house, second_look_seconds=1.0) as trainer:
        job = await trainer.ended((await trainer.create()).name)
        assert looks(house) == []
    assert (job.state, job.error.reason) == (Job.STATE_FAILED, pb.JobError.REASON_TIMEOUT)
    assert "--second-look-seconds" in job.error.message


async def test_a_look_that_was_killed_is_made_again(house: House, shared: Path) -> None:
    gate = gate_of(shared)
    async with running(house) as trainer:
        created = await trainer.create()
        held = await stands_at(gate)
        (killed,) = looks(house)
        killed.kill()
        os.close(held)
        await until(gone(killed))
        os.close(await stands_at(gate))
        job = await trainer.ended(created.name)
    assert job.state == Job.STATE_SUCCEEDED, job.error


async def test_looks_that_are_always_killed_fail_the_job(house: House, shared: Path) -> None:
    gate = gate_of(shared)
    async with running(house) as trainer:
        created = await trainer.create()
        for _ in range(3):
            held = await stands_at(gate)
            (killed,) = looks(house)
            killed.kill()
            os.close(held)
            await until(gone(killed))
        job = await trainer.ended(created.name)
    assert (job.state, job.error.reason) == (Job.STATE_FAILED, pb.JobError.REASON_PROCESS_DIED)
    assert "SIGKILL" in job.error.message


async def test_who_looks_reads_neither_the_code_of_jobs_nor_the_trainer_s_data(
    house: House, shared: Path
) -> None:
    try:
        landlock_version()
    except OSError as error:
        pytest.skip(f"no Landlock: {error.strerror}")
    (shared / "spies").touch()
    (house.tmp_path / "code").mkdir()
    (house.tmp_path / "code" / "nets.py").write_text("def net(facts): ...\n")
    async with running(house, user_code=(str(house.tmp_path / "code"),)) as trainer:  # type: ignore[arg-type]
        job = await trainer.ended((await trainer.create()).name)
    assert job.state == Job.STATE_SUCCEEDED, job.error
