"""Jobs that clients delete, and those that are not kept."""

from __future__ import annotations

import asyncio

import pytest

from modelrail.client.blocking import TrainerClient
from modelrail.client.errors import FailedPrecondition, InvalidArgument, NotFound
from modelrail_trainer.execution import retention
from tests.faults.trainers import until
from tests.integration.house import (
    House,
    TrainerUnderTest,
    cli,
)


async def test_a_deleted_job_is_gone_with_its_folder_and_its_version_stays(
    house: House, trainer: TrainerUnderTest, capsys: pytest.CaptureFixture[str]
) -> None:
    job = await trainer.ended((await trainer.create()).name)
    folder = trainer.directory(job.name)
    assert folder.exists()
    await trainer.client.delete_job(job.name)
    for call in (
        trainer.client.get_job(job.name),
        trainer.events(job.name),
        trainer.client.delete_job(job.name),
        trainer.client.clone_job(job.name),
    ):
        with pytest.raises(NotFound, match=job.name):
            await call
    assert [found async for found in trainer.client.list_jobs()] == []
    await until(lambda: not folder.exists())
    assert [version.name for version in house.registry.versions.values()] == [job.model_version]
    (told,) = [line for line in capsys.readouterr().out.splitlines() if "job deleted" in line]
    assert job.name in told
    assert "actor=owner" in told


async def test_a_job_that_has_not_ended_is_not_deleted_and_says_what_to_do(
    trainer: TrainerUnderTest,
) -> None:
    name = (await trainer.create("preparing running wait")).name
    await trainer.until_line(name, "waiting")
    with pytest.raises(FailedPrecondition, match="cancel it first, or wait for its end") as refused:
        await trainer.client.delete_job(name)
    assert refused.value.reason == "JOB_NOT_ENDED"
    await trainer.client.cancel_job(name)
    await trainer.events(name)
    await trainer.client.delete_job(name)


async def test_only_the_name_of_a_job_is_deleted(trainer: TrainerUnderTest) -> None:
    with pytest.raises(InvalidArgument, match="name"):
        await trainer.client.delete_job("trainingJobs/*")
    with pytest.raises(NotFound):
        await trainer.client.delete_job("trainingJobs/nobody")


async def test_the_command_line_and_the_sync_client_delete_jobs(
    house: House, trainer: TrainerUnderTest
) -> None:
    names = [(await trainer.ended((await trainer.create("crash")).name)).name for _ in range(2)]
    status, output = await cli(house, "jobs", "delete", names[0].removeprefix("trainingJobs/"))
    assert (status, output.strip()) == (0, f"{names[0]} is deleted")
    status, output = await cli(house, "jobs", "delete", names[0])
    assert status == 1
    assert "NOT_FOUND" in output

    def delete() -> None:
        with TrainerClient(f"unix:{house.tmp_path}/t.sock") as client:
            client.delete_job(names[1])

    await asyncio.to_thread(delete)
    assert [found async for found in trainer.client.list_jobs()] == []


async def test_ended_jobs_beyond_those_that_are_kept_are_deleted(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "_SWEEP_SECONDS", 0.05)
    async with house.trainer(keep_ended_jobs=2) as trainer:
        names = [(await trainer.ended((await trainer.create("crash")).name)).name for _ in range(4)]
        await until(lambda: not any(trainer.directory(name).exists() for name in names[:2]))
        kept = [job.name async for job in trainer.client.list_jobs()]
    assert kept == names[:1:-1]
