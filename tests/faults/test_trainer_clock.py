"""The wall clock of the trainer is set on or back while it runs jobs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from modelrail.client.trainer import RunPolicy
from modelrail.trainer.v1 import trainer_pb2 as pb
from tests.faults.trainers import Job, Running, Site, site, until

_HOUR_SECONDS = 3600
_NAME = "faketime/libfaketimeMT.so.1"


def faketime() -> Path | None:
    """Returns the library of Debian's package libfaketime, installed or named by a variable."""
    named = os.environ.get("MODELRAIL_LIBFAKETIME")
    found = [Path(named)] if named else sorted(Path("/usr/lib").glob(f"*/{_NAME}"))
    return found[0] if found else None


pytestmark = pytest.mark.skipif(
    faketime() is None,
    reason="needs Debian's package libfaketime, or MODELRAIL_LIBFAKETIME with its library's path",
)


class Clock:
    """The service's wall clock; its jobs' processes and the kernel's other clocks are untouched."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.set(0)

    def set(self, seconds: int) -> None:
        """Sets it so many seconds before or after the right time."""
        beside = self._file.with_suffix(".new")
        beside.write_text(f"{seconds:+d}\n")
        beside.replace(self._file)

    @property
    def environ(self) -> dict[str, str]:
        return {
            "LD_PRELOAD": str(faketime()),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
            "TZ": "Europe/Berlin",
        }


def spec(epochs: int) -> pb.TrainingJobSpec:
    return pb.TrainingJobSpec(
        dataset=pb.Dataset(line=pb.LineDataset(slope=0.5, intercept=1.0, points=1000)),
        model=pb.ModelSpec(linear=pb.LinearModel()),
        loss=pb.Loss(mse=pb.MeanSquaredError()),
        optimizer=pb.Optimizer(sgd=pb.Sgd(learning_rate=0.001)),
        epochs=epochs,
        log_every_epochs=100_000,
        publication=pb.Publication(model="line"),
    )


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Site]:
    async with site(tmp_path) as found:
        yield found


async def reported_epoch(trainer: Running, job: Job) -> int:
    return (await trainer.client.get_job(job.name)).progress.epoch


def until_time(time: datetime) -> int:
    """Seconds from now to another time, which may be past."""
    return round((time - datetime.now(UTC)).total_seconds())


@pytest.mark.parametrize(
    "shift_of",
    [
        pytest.param(lambda: _HOUR_SECONDS, id="an hour on", marks=pytest.mark.slow),
        pytest.param(lambda: -_HOUR_SECONDS, id="an hour back", marks=pytest.mark.slow),
        # A second in 32 bits with a sign ends at 03:14:08 of that day.
        pytest.param(lambda: until_time(datetime(2038, 1, 19, 3, 14, tzinfo=UTC)), id="to 2038"),
        # In the service's time zone the hour from 2 to 3 comes twice.
        pytest.param(
            lambda: until_time(datetime(2026, 10, 25, 0, 59, 55, tzinfo=UTC)),
            id="to the end of summer time",
            marks=pytest.mark.slow,
        ),
    ],
)
async def test_no_job_is_ended_spared_or_forgotten_when_the_clock_is_set(
    place: Site, shift_of: Callable[[], int]
) -> None:
    shift = shift_of()
    clock = Clock(place.path / "clock")
    # A silence of a minute fails a job, and ten minutes of running end it: an hour would do both.
    flags = ("--max-job-silence-seconds", "60")
    async with place.trainer(*flags, environ=clock.environ) as trainer:
        long = RunPolicy(max_run_seconds=600, max_retries=1)
        job = await trainer.submit(spec(100_000), policy=long)
        first = await trainer.submit(spec(2))
        await until(lambda: job.lines > 20)
        clock.set(shift)
        epoch = await reported_epoch(trainer, job)
        async with asyncio.timeout(60):
            while await reported_epoch(trainer, job) < epoch + 20:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        short = await trainer.submit(spec(100_000), policy=RunPolicy(max_run_seconds=5))

        # A retry comes after its second, not after an hour.
        (worker,) = place.workers()
        worker.kill()
        async with asyncio.timeout(60):
            while (await trainer.client.get_job(job.name)).attempt < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        await trainer.client.cancel_job(job.name)
        cancelled, _ = await trainer.ended(job)

        # The queue goes on in its order, and a limit of time holds as before.
        done, _ = await trainer.ended(first)
        expired, _ = await trainer.ended(short)
    told = expired.create_time.ToDatetime() - done.create_time.ToDatetime()
    assert abs(told.total_seconds() - shift) < 120  # the service saw the other time
    assert cancelled.state == pb.TrainingJob.STATE_CANCELLED
    assert done.state == pb.TrainingJob.STATE_SUCCEEDED, done.error.message
    assert expired.state == pb.TrainingJob.STATE_EXPIRED
    assert expired.error.reason == pb.JobError.REASON_TIMEOUT
