from __future__ import annotations

import pytest

from modelrail.cli.commands.jobs import show_job
from modelrail.trainer.v1 import trainer_pb2 as pb

Layer = pb.IsolationLayer


def test_a_job_is_shown_with_its_walls(capsys: pytest.CaptureFixture[str]) -> None:
    job = pb.TrainingJob(
        name="trainingJobs/a",
        state=pb.TrainingJob.STATE_RUNNING,
        isolation=[
            Layer(name=Layer.NAME_FILES, active=True, detail="Landlock 7"),
            Layer(name=Layer.NAME_CPU_TIME, active=True, detail="60 s"),
            Layer(name=Layer.NAME_MEMORY, active=False, detail="no limit is set"),
        ],
    )
    show_job(job)
    shown = capsys.readouterr()
    text = shown.out + shown.err
    assert "  walls    files, cpu time\n" in text
    assert "  no wall  memory: no limit is set\n" in text


def test_a_job_in_its_first_epoch_is_shown_with_its_steps_its_speed_and_the_time_left(
    capsys: pytest.CaptureFixture[str],
) -> None:
    progress = pb.Progress(epochs=3, step=1200, steps=36_000, rows_per_second=1500)
    progress.eta.FromSeconds(90)
    show_job(pb.TrainingJob(name="trainingJobs/a", progress=progress))
    shown = capsys.readouterr()
    said = "0/3, step 1200/36000, 1,500 rows/s, about 1 min 30 s of training left"
    assert f"  epoch    {said} when it was told last\n" in shown.out + shown.err
