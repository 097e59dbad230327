"""A trainer that is killed while the files of a job are looked at: they are looked at again."""

from __future__ import annotations

import signal
from pathlib import Path

import psutil

from modelrail.trainer.v1 import trainer_pb2 as pb
from tests.faults.gated import SPEC
from tests.faults.trainers import site, until
from tests.job_processes import job_processes


def looks(path: Path) -> list[psutil.Process]:
    """Returns the processes that look a second time."""
    return job_processes(path / "trainer" / "second-looks")


async def test_a_trainer_killed_in_a_second_look_ends_it_and_looks_again(tmp_path: Path) -> None:
    async with site(tmp_path) as place:
        async with place.trainer() as trainer:
            job = await trainer.submit(SPEC)
            await until(lambda: bool(looks(tmp_path)))
            (left,) = looks(tmp_path)
            left.suspend()
            await trainer.end(signal.SIGKILL)
        assert looks(tmp_path) == [left]
        assert await place.versions("line") == []
        async with place.trainer() as trainer:
            ended, lines = await trainer.ended(job)
            assert looks(tmp_path) == []
        assert (ended.state, ended.attempt) == (pb.TrainingJob.STATE_SUCCEEDED, 1)
        assert [version.name for version in await place.versions("line")] == [ended.model_version]
    assert len([line for line in lines if "second look" in line]) == 1
