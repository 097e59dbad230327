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
from modelrail_trainer.isolation.kernel import landlock_version
from tests.faults.trainers import WAIT_SECONDS, Running, Site, site

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROOT = Path(__file__).parents[2]
Error = pb.JobError
NETS = """\
import torch
from torch import nn


class Told(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.line = nn.Linear(2, 2)
        self.told = forward

    def forward(self, x):
        return self.told(self, x)


def good(facts):
    return nn.Linear(2, 2)


def wide(facts):
    return nn.Linear(2, 3)


def nan(facts):
    return Told(lambda self, x: self.line(x) / (x - x))


def nan_in_training(facts):
    return Told(lambda self, x: self.line(x) * (torch.nan if self.training else 1))


def leaves_in_training(facts):
    def forward(self, x):
        if self.training:
            import os
            os._exit(0)
        return self.line(x)

    return Told(forward)


def not_in_onnx(facts):
    return Told(lambda self, x: self.line(x) * torch.special.bessel_j0(x))


def branches(facts):
    return Told(lambda self, x: self.line(x) if x.sum() > 0 else x)


def noisy(facts):
    return Told(lambda self, x: self.line(x) + torch.rand_like(x))
"""
ROWS = """\
import os
import signal
import time
import numpy as np


def blobs():
    generator = np.random.default_rng(3)
    targets = generator.integers(0, 2, 90)
    inputs = generator.normal(size=(90, 2)) + 3 * targets[:, None]
    return {"inputs": inputs.astype(np.float32), "targets": targets}


def nan():
    rows = blobs()
    rows["inputs"][7, 1] = np.nan
    return rows


def too_few_targets():
    rows = blobs()
    return rows | {"targets": rows["targets"][:80]}


def raises():
    raise ValueError(f"no such thing in {__file__}")


def leaves():
    os._exit(0)


def writes(path):
    with open(path, "w") as file:
        file.write("x")


def hangs():
    while True:
        time.sleep(1)


def hangs_and_hears_nothing():
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    hangs()
"""


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
    (folder / "code").mkdir()
    (folder / "code" / "nets.py").write_text(NETS)
    (folder / "code" / "rows.py").write_text(ROWS)
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
            "rows:raises: ValueError: no such thing in rows.py\n  File 'rows.py', line 26, in",
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
        ),
    ],
)  # fmt: skip
async def test_what_the_code_does_wrong_fails_the_job_and_says_what_to_do(
    trainer: Running, model: str, dataset: str, reason: pb.JobError.Reason, told: str
) -> None:
    error = await failed(spec_of(model, dataset), trainer)
    assert error.reason == reason, error
    assert told in error.message


@pytest.fixture
def landlock() -> None:
    try:
        landlock_version()
    except OSError as error:
        pytest.skip(f"the kernel has no Landlock: {error.strerror}")


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
    assert re.search(r'File "rows\.py", line (39|40) in hangs', showed.message)
