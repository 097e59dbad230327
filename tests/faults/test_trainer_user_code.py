"""Code of a job's owner that does what it must not: the job ends with a reason and what to do.

The trainer goes on, and nobody is told where on the machine anything lies.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest
import pytest_asyncio

from modelrail.client.errors import FailedPrecondition
from modelrail.trainer.v1 import trainer_pb2 as pb
from tests.faults.trainers import WAIT_SECONDS, Running, Site, site
from tests.user_code import ROWS, line_of, write_code

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROOT = Path(__file__).parents[2]
Error = pb.JobError


def spec_of(
    model: str = "good", dataset: str = "blobs", arguments: Mapping[str, str] | None = None
) -> pb.TrainingJobSpec:
    spec = pb.TrainingJobSpec(
        dataset=pb.Dataset(custom=pb.CustomDataset(entry_point=f"rows:{dataset}")),
        split=pb.Split(validation_fraction=0.2, test_fraction=0.2, seed=1),
        model=pb.ModelSpec(custom=pb.CustomModel(entry_point=f"nets:{model}")),
        loss=pb.Loss(cross_entropy=pb.CrossEntropy()),
        optimizer=pb.Optimizer(adam=pb.Adam(learning_rate=0.01)),
        epochs=1,
        publication=pb.Publication(model="own"),
    )
    spec.dataset.custom.arguments.update(arguments or {})
    return spec


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    write_code(folder / "code")
    async with site(folder) as found:
        yield found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def trainer(place: Site) -> AsyncIterator[Running]:
    async with place.trainer("--user-code", str(place.path / "code")) as running:
        yield running


async def failed(spec: pb.TrainingJobSpec, trainer: Running) -> pb.JobError:
    """Returns why a job failed, and holds what clients were told to be free of paths."""
    job, lines = await trainer.ended(await trainer.submit(spec))
    assert job.state == pb.TrainingJob.STATE_FAILED, job.error
    place = trainer.jobs.parents[1]
    for text in (job.error.message, *lines):
        for secret in (place, sys.prefix, sys.base_prefix, ROOT):
            assert f"{secret}/" not in text
    assert not job.model_version
    return job.error


@pytest.mark.parametrize(
    ("model", "dataset", "reason", "told"),
    [
        pytest.param(
            "good", "raises", Error.REASON_USER_CODE,
            "rows:raises: ValueError: no such thing in rows.py\n"
            f"  File 'rows.py', line {line_of(ROWS, 'no such thing')}, in raises",
            id="an exception",
        ),
        pytest.param(
            "good", "leaves", Error.REASON_USER_CODE,
            "rows:leaves ended the process with os._exit(0); return what was asked for, or raise",
            id="an end of the process while rows are made",
        ),
        pytest.param(
            "leaves_in_training", "blobs", Error.REASON_USER_CODE,
            "nets:leaves_in_training ended the process with os._exit(0); return what was asked",
            id="an end of the process while a step is made",
        ),
        pytest.param(
            "good", "nan", Error.REASON_USER_CODE,
            "rows:nan: inputs: expected finite numbers; got nan at [7, 1]",
            id="rows that are no numbers",
        ),
        pytest.param(
            "good", "too_few_targets", Error.REASON_USER_CODE,
            "rows:too_few_targets: targets: expected 90 rows as in the inputs; got 80",
            id="rows without targets",
        ),
        pytest.param(
            "wide", "blobs", Error.REASON_USER_CODE,
            "nets:wide: expected the module to map rows [2, 2] to float32 [2, 2], got float32 [2",
            id="outputs of a wrong shape",
        ),
        pytest.param(
            "nan", "blobs", Error.REASON_USER_CODE,
            "of row 0; look for what it divides by or takes the logarithm of",
            id="outputs that are no numbers",
        ),
        pytest.param(
            "nan_in_training", "blobs", Error.REASON_NAN_LOSS,
            "the loss became nan in epoch 1, step 1; a smaller learning rate, max_gradient_norm",
            id="a loss that is no number",
        ),
        pytest.param(
            "not_in_onnx", "blobs", Error.REASON_EXPORT_FAILED,
            "nets:not_in_onnx: the module has to be made of operations that ONNX has",
            id="an operation that ONNX has not",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "branches", "blobs", Error.REASON_EXPORT_FAILED,
            "nets:branches: the module has to be made of operations that ONNX has, the same ones "
            "whatever the values",
            id="a branch on values",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "noisy", "blobs", Error.REASON_GATE_FAILED,
            "nets:noisy: the export has to compute what the module does, and the module the same "
            "for the same rows",
            id="another answer each time",
            marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
async def test_what_the_code_does_wrong_fails_the_job_and_says_what_to_do(
    trainer: Running, model: str, dataset: str, reason: pb.JobError.Reason, told: str
) -> None:
    error = await failed(spec_of(model, dataset), trainer)
    assert error.reason == reason, error
    assert told in error.message


@pytest.mark.usefixtures("landlock")
@pytest.mark.parametrize("path", ["trainer/trainer.sqlite3", "code/rows.py", "new"])
async def test_code_writes_nothing_outside_of_the_jobs_folder(
    place: Site, trainer: Running, path: str
) -> None:
    target = place.path / path
    error = await failed(spec_of(dataset="writes", arguments={"path": str(target)}), trainer)
    assert error.reason == Error.REASON_USER_CODE, error
    assert error.message.startswith(
        f"rows:writes: PermissionError: [Errno 13] Permission denied: '{target.name}'; a job "
        "writes in the folder that it runs in and nowhere else"
    )
    assert (place.path / "code" / "rows.py").read_text() == ROWS
    assert not (place.path / "new").exists()


async def test_a_dry_run_tells_it_before_anything_is_queued(trainer: Running) -> None:
    patient = trainer.client.with_timeout(WAIT_SECONDS)
    with pytest.raises(FailedPrecondition) as caught:
        await patient.create_job(spec_of("leaves_in_training"), dry_run=True)
    assert "nets:leaves_in_training ended the process with os._exit(0)" in str(caught.value)
    assert str(trainer.jobs) not in str(caught.value)


async def test_the_trainer_goes_on_after_all_of_them(place: Site, trainer: Running) -> None:
    await failed(spec_of("good", "leaves"), trainer)
    job, _ = await trainer.ended(await trainer.submit(spec_of()))
    assert job.state == pb.TrainingJob.STATE_SUCCEEDED, job.error
    assert [version.name for version in await place.versions("own")] == [job.model_version]


async def test_code_that_hangs_is_stopped_and_told_where_it_was(place: Site) -> None:
    # Python and torch have to be there within the limit.
    flags = (
        *("--max-job-silence-seconds", "20", "--cancel-grace-seconds", "1"),
        *("--max-running-jobs", "2", "--user-code", str(place.path / "code")),
    )
    alone = Site(place.path / "hanging", place.registry)
    alone.path.mkdir()
    (alone.path / "r.sock").symlink_to(place.path / "r.sock")
    async with alone.trainer(*flags) as trainer:
        showed, was_killed = await asyncio.gather(
            failed(spec_of(dataset="hangs"), trainer),
            failed(spec_of(dataset="hangs_and_hears_nothing"), trainer),
        )
        assert not alone.workers()
    for error in (showed, was_killed):
        assert error.reason == Error.REASON_STALLED, error
        assert "--max-job-silence-seconds raised" in error.message
        assert "modelrail_trainer.user_code.made_progress" in error.message
    # Asleep, or between two sleeps.
    asleep = line_of(ROWS, "time.sleep(1)")
    assert re.search(rf'File "rows\.py", line ({asleep - 1}|{asleep}) in hangs', showed.message)
