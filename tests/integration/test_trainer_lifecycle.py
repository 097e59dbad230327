"""The life of a job over gRPC and through the CLI: who moved it, its turn, how it ends."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from modelrail.client.channel import Connection
from modelrail.client.errors import InvalidArgument
from modelrail.client.trainer import AsyncTrainerClient, RunPolicy
from modelrail.trainer.v1 import trainer_pb2 as pb
from modelrail_server.access.api_keys import new_key, write_keys
from modelrail_server.policy import Permission
from tests.integration.test_trainer_service import (
    House,
    ScriptedRegistry,
    TrainerUnderTest,
    line_spec,
    serving_registry,
    states,
)

Job = pb.TrainingJob


@pytest.fixture
async def house(tmp_path: Path) -> House:
    return House(tmp_path, ScriptedRegistry())  # type: ignore[abstract]  # answers what is asked here


@pytest.fixture
async def trainer(house: House) -> AsyncIterator[TrainerUnderTest]:
    async with (
        serving_registry(house.registry, house.registry_address),
        house.trainer() as trainer,
    ):
        yield trainer


async def jobs_command(house: House, *arguments: str) -> tuple[int, str]:
    """Runs `modelrail jobs …`; returns its exit status and all that it wrote."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "modelrail.cli", "jobs", *arguments),
        *("--trainer", f"unix:{house.tmp_path}/t.sock"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


def actors(events: list[pb.TrainingJobEvent]) -> list[str]:
    return [event.state_change.actor for event in events if event.HasField("state_change")]


# Who brought it about


async def test_events_name_the_client_whose_key_asked(house: House) -> None:
    keys = {name: new_key(name, [Permission.READ, Permission.WRITE]) for name in ("alice", "bob")}
    file = house.tmp_path / "keys.json"
    write_keys(file, [record for _, record in keys.values()])
    async with house.trainer(api_keys_file=file):  # type: ignore[arg-type]  # no figure
        alice, bob = (
            AsyncTrainerClient(Connection(address=f"unix:{house.tmp_path}/t.sock", api_key=text))
            for text, _ in keys.values()
        )
        async with alice, bob:
            name = (await alice.create_job(line_spec("preparing running wait"))).name
            async for event in alice.watch_job(name):
                if event.log_line.text == "waiting":
                    break
            await bob.cancel_job(name)
            events = [event async for event in alice.watch_job(name)]
    assert states(events) == ["QUEUED", "PREPARING", "RUNNING", "CANCELLING", "CANCELLED"]
    assert actors(events) == ["alice", "trainer", "worker", "bob", "trainer"]


async def test_the_command_line_tells_who_cancelled_a_job(
    house: House, trainer: TrainerUnderTest
) -> None:
    created = await trainer.create("preparing running wait")
    await trainer.until_line(created.name, "waiting")
    await trainer.client.cancel_job(created.name)
    status, output = await jobs_command(house, "watch", created.name)
    assert status == 1
    assert "job is being stopped (asked for by owner): a client cancelled the job" in output
    assert "job waits for its turn\n" in output


# The queue


async def test_the_next_place_goes_to_the_highest_priority(
    house: House, trainer: TrainerUnderTest
) -> None:
    first = await trainer.create("preparing running wait")
    await trainer.until_line(first.name, "waiting")
    low = await trainer.client.create_job(line_spec(), policy=RunPolicy(priority=-1))
    high = await trainer.client.create_job(line_spec(), policy=RunPolicy(priority=100))
    assert (low.priority, high.priority) == (-1, 100)
    _, output = await jobs_command(house, "show", high.name)
    assert "priority 100" in output
    await trainer.client.cancel_job(first.name)
    low, high = await trainer.ended(low.name), await trainer.ended(high.name)
    assert high.start_time.ToDatetime() < low.start_time.ToDatetime()
    newest_first = [job.name async for job in trainer.client.list_jobs()]
    assert newest_first == [high.name, low.name, first.name]


@pytest.mark.parametrize("priority", [-101, 101])
async def test_a_priority_out_of_range_is_refused_by_name(
    trainer: TrainerUnderTest, priority: int
) -> None:
    with pytest.raises(InvalidArgument, match="from -100 to 100") as caught:
        await trainer.client.create_job(line_spec(), policy=RunPolicy(priority=priority))
    assert [violation.field for violation in caught.value.violations] == ["training_job.priority"]
