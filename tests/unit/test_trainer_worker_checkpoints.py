"""Checkpoints: training that was interrupted ends with the weights of training that was not."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from modelrail_trainer import spec
from modelrail_trainer.worker import data
from modelrail_trainer.worker.learning import loop
from modelrail_trainer.worker.learning.checkpoint import Checkpoints, Position
from modelrail_trainer.worker.learning.evaluate import Predict, torch_predict
from modelrail_trainer.worker.learning.loop import Epoch, Trained, fit
from modelrail_trainer.worker.learning.progress import Progress
from modelrail_trainer.worker.learning.replicas import ALONE, Replicas
from modelrail_trainer.worker.learning.selection import BestEpoch
from modelrail_trainer.worker.learning.stop import Stopped, StopRequest
from modelrail_trainer.worker.network import Network
from modelrail_trainer.worker.part import Inputs
from modelrail_trainer.worker.training_data import TrainingData

DIGITS = spec.TrainingJobSpec(
    dataset=spec.BundledDataset(name="digits"),
    # Drop-out draws random numbers, and batch norm keeps statistics beside the weights.
    model=spec.CnnModel(channels=(4,), hidden_units=8, dropout=0.3),
    loss=spec.CrossEntropy(),
    optimizer=spec.Adam(),
    epochs=3,
    batch_size=256,
    seed=5,
    publication=spec.Publication(model="digits"),
)
IDENTITY = {"specification": "1"}
STEPS_PER_EPOCH = 5
JOBS = {
    "adam and drop-out": DIGITS,
    "adamw": replace(DIGITS, optimizer=spec.AdamW()),
    "momentum": replace(DIGITS, optimizer=spec.Sgd(learning_rate=0.1, momentum=0.9)),
    "gradient descent": replace(
        DIGITS, optimizer=spec.GradientDescent(learning_rate=0.1), epochs=15
    ),
    "mixed precision": replace(DIGITS, precision=spec.Precision.MIXED_BF16),
    "batch norm": replace(DIGITS, model=spec.ResNetModel(channels=(4,), blocks_per_stage=1)),
    "schedule and last epoch": replace(
        DIGITS,
        schedule=spec.Schedule(kind=spec.CosineSchedule(), warmup_steps=4),
        selection=spec.Selection(keep_last=True),
    ),
}


class Killed(BaseException):
    """Ends training where a killed process would have ended."""


class KilledAfter(Checkpoints):
    """Checkpoints of a process that dies right after it wrote that of a step."""

    def __init__(self, folder: Path, step: int) -> None:
        super().__init__(folder, IDENTITY, every_steps=1)
        self._last = step

    def save(self, position: Position, tensors: Mapping[str, Tensor]) -> None:
        super().save(position, tensors)
        if position.step == self._last:
            raise Killed


class StoppedAfter(Checkpoints):
    """Checkpoints of a process that gets SIGTERM right after a step."""

    def __init__(self, folder: Path, step: int) -> None:
        super().__init__(folder, IDENTITY, every_seconds=3600.0)
        self._last = step

    def is_due(self, step: int) -> bool:
        if step == self._last:
            signal.raise_signal(signal.SIGTERM)
        return super().is_due(step)


def rows() -> TrainingData:
    return data.load(DIGITS)


def trained(
    job: spec.TrainingJobSpec, checkpoints: Checkpoints | None
) -> tuple[Trained, list[Epoch], list[str]]:
    epochs: list[Epoch] = []
    said: list[str] = []
    return fit(job, rows(), epochs.append, checkpoints, said.append), epochs, said


def weights(result: Trained) -> dict[str, Tensor]:
    return dict(result.network.state_dict())


def figures(epochs: list[Epoch]) -> list[Any]:
    return [(e.number, e.step, e.train_loss, e.validation) for e in epochs]


@pytest.mark.parametrize("name", JOBS)
@pytest.mark.parametrize("step", [1, 4, 5, 7, 15])
def test_training_that_was_killed_ends_like_training_that_was_not(
    tmp_path: Path, name: str, step: int
) -> None:
    job = JOBS[name]
    whole, all_epochs, _ = trained(job, None)
    with pytest.raises(Killed):
        trained(job, KilledAfter(tmp_path / "c", step))
    resumed, epochs, said = trained(job, Checkpoints(tmp_path / "c", IDENTITY))
    assert any(f"after step {step}," in line for line in said)
    assert weights(resumed).keys() == weights(whole).keys()
    for key, value in weights(whole).items():
        assert torch.equal(weights(resumed)[key], value), key
    assert (resumed.step, resumed.best_epoch) == (whole.step, whole.best_epoch)
    # An epoch that had ended before is not trained again; the one under way has its whole loss.
    assert figures(epochs) == figures(all_epochs)[-len(epochs) :]
    steps_of_an_epoch = all_epochs[0].step
    assert len(epochs) == job.epochs - (step - 1) // steps_of_an_epoch


def stopped(job: spec.TrainingJobSpec, checkpoints: Checkpoints) -> tuple[Stopped, list[Epoch]]:
    """Trains until SIGTERM has been heeded."""
    before = signal.getsignal(signal.SIGTERM)
    epochs: list[Epoch] = []
    stop = StopRequest()
    try:
        with pytest.raises(Stopped) as raised, stop.heeded():
            fit(job, rows(), epochs.append, checkpoints, stop=stop)
    finally:
        signal.signal(signal.SIGTERM, before)
    return raised.value, epochs


@pytest.mark.parametrize("name", JOBS)
@pytest.mark.parametrize("step", [1, 5, 7])
def test_training_that_was_told_to_stop_keeps_every_step_and_ends_like_training_that_was_not(
    tmp_path: Path, name: str, step: int
) -> None:
    job = JOBS[name]
    whole, all_epochs, _ = trained(job, None)
    end, before = stopped(job, StoppedAfter(tmp_path / "c", step))
    assert (end.step, end.kept) == (step, True)
    resumed, epochs, said = trained(job, Checkpoints(tmp_path / "c", IDENTITY))
    assert any(f"after step {step}," in line for line in said)
    for key, value in weights(whole).items():
        assert torch.equal(weights(resumed)[key], value), key
    assert figures(before + epochs) == figures(all_epochs)


def test_a_stop_interrupts_the_validation_after_an_epoch_which_is_done_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, all_epochs, _ = trained(DIGITS, None)
    looked = 0

    def told_to_stop(network: Network) -> Predict:
        predict = torch_predict(network)

        def predicted(chosen: Inputs) -> npt.NDArray[np.float32]:
            nonlocal looked
            looked += 1
            if looked == 1:  # in the first batch of the first validation
                signal.raise_signal(signal.SIGTERM)
            return predict(chosen)

        return predicted

    monkeypatch.setattr(loop, "torch_predict", told_to_stop)
    assert len(rows().validation) > 256  # more than one batch
    end, before = stopped(DIGITS, Checkpoints(tmp_path / "c", IDENTITY, every_seconds=3600.0))
    assert (end.step, end.kept, before, looked) == (STEPS_PER_EPOCH, True, [], 1)
    monkeypatch.undo()
    resumed, epochs, _ = trained(DIGITS, Checkpoints(tmp_path / "c", IDENTITY))
    assert figures(epochs) == figures(all_epochs)
    for key, value in weights(whole).items():
        assert torch.equal(weights(resumed)[key], value), key


def test_a_stop_without_room_for_a_checkpoint_does_not_claim_to_have_kept_anything(
    tmp_path: Path,
) -> None:
    (tmp_path / "c").write_text("no folder can be made here")
    end, _ = stopped(DIGITS, StoppedAfter(tmp_path / "c", 3))
    assert (end.step, end.kept) == (3, False)


def test_before_and_after_training_sigterm_ends_the_process_at_once() -> None:
    program = (
        "import signal\n"
        "from modelrail_trainer.worker.learning.stop import StopRequest\n"
        "stop = StopRequest()\n"
        "with stop.heeded():\n"
        "    signal.raise_signal(signal.SIGTERM)\n"
        "    print('heeded', stop.made, flush=True)\n"
        "print('after')\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert (ended.stdout.split(), ended.returncode) == ([b"heeded", b"True"], -signal.SIGTERM)


def test_training_can_be_killed_again_and_again(tmp_path: Path) -> None:
    whole, *_ = trained(DIGITS, None)
    for step in (2, 3, 6, 11, 14):
        with pytest.raises(Killed):
            trained(DIGITS, KilledAfter(tmp_path / "c", step))
    resumed, *_ = trained(DIGITS, Checkpoints(tmp_path / "c", IDENTITY))
    for key, value in weights(whole).items():
        assert torch.equal(weights(resumed)[key], value), key


def left_by(tmp_path: Path, step: int) -> Path:
    with pytest.raises(Killed):
        trained(DIGITS, KilledAfter(tmp_path / "c", step))
    return tmp_path / "c"


def test_the_two_newest_are_kept_and_are_plain_safetensors(tmp_path: Path) -> None:
    folder = left_by(tmp_path, 4)
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["step-000000000003.safetensors", "step-000000000004.safetensors"]
    with safetensors.safe_open(folder / names[1], framework="pt") as file:
        assert "network.body.0.weight" not in file.metadata()
        assert any(key.startswith("optimiser.") for key in file.keys())  # noqa: SIM118


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def scribbled(path: Path) -> None:
    path.write_bytes(os.urandom(5000))


def flipped_in_a_tensor(path: Path) -> None:
    flip(path, -100)


def flipped_in_the_position(path: Path) -> None:
    # Still a number, and a position: the rows of the epoch so far.
    name = b'\\"rows\\": '
    flip(path, path.read_bytes().index(name) + len(name) + 1)


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    with safetensors.safe_open(path, framework="pt") as file:  # nothing else tells
        json.loads(file.metadata()["modelrail"])


@pytest.mark.parametrize(
    "hurt", [cut, emptied, scribbled, flipped_in_a_tensor, flipped_in_the_position]
)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path: Path, hurt: Any) -> None:
    folder = left_by(tmp_path, 4)
    newest = max(folder.iterdir())
    hurt(newest)
    found = Checkpoints(folder, IDENTITY).newest()
    assert found is not None
    assert found.position.step == 3
    hurt(min(folder.iterdir()))
    assert Checkpoints(folder, IDENTITY).newest() is None


def save(checkpoints: Checkpoints, *steps: int) -> None:
    for step in steps:
        position = Position(
            epoch=1, rows=step, step=step, loss_sum=0.0, best_epoch=0, best_figure=0.0
        )
        checkpoints.save(position, {"network.weight": torch.full((100,), float(step))})


def steps_in(folder: Path) -> list[int]:
    return sorted(int(path.stem.removeprefix("step-")) for path in folder.iterdir())


def test_a_job_that_begins_anew_keeps_its_own_checkpoints_and_not_the_others(
    tmp_path: Path,
) -> None:
    save(Checkpoints(tmp_path, {"processors": "2"}), 90, 100)
    own = Checkpoints(tmp_path, IDENTITY)
    assert own.newest() is None
    assert steps_in(tmp_path) == [90, 100]  # of use until there is one of its own
    for step, kept in ((10, [10]), (20, [10, 20]), (30, [20, 30])):
        save(own, step)
        assert steps_in(tmp_path) == kept
        found = Checkpoints(tmp_path, IDENTITY).newest()
        assert found is not None
        assert found.position.step == step


def test_damaged_checkpoints_make_way_for_whole_ones(tmp_path: Path) -> None:
    save(Checkpoints(tmp_path, IDENTITY), 90, 100)
    for path in tmp_path.iterdir():
        flipped_in_a_tensor(path)
    own = Checkpoints(tmp_path, IDENTITY)
    assert own.newest() is None
    save(own, 10, 50)
    assert steps_in(tmp_path) == [10, 50]


def test_beside_a_damaged_checkpoint_two_whole_ones_are_kept(tmp_path: Path) -> None:
    save(Checkpoints(tmp_path, IDENTITY), 90, 100)
    flipped_in_a_tensor(max(tmp_path.iterdir()))
    own = Checkpoints(tmp_path, IDENTITY)
    assert own.newest() is not None
    save(own, 95)
    assert steps_in(tmp_path) == [90, 95]
    save(own, 100)  # in the place of the damaged one
    assert steps_in(tmp_path) == [95, 100]


def test_a_checkpoint_after_the_same_step_counts_once(tmp_path: Path) -> None:
    save(Checkpoints(tmp_path, IDENTITY), 3, 5)
    own = Checkpoints(tmp_path, IDENTITY)
    assert own.newest() is not None
    save(own, 5, 7)
    assert steps_in(tmp_path) == [5, 7]


def test_what_a_process_left_that_was_killed_while_it_wrote_is_removed_by_the_next_first_one(
    tmp_path: Path,
) -> None:
    save(Checkpoints(tmp_path, IDENTITY), 1)
    (whole,) = tmp_path.iterdir()
    partial = whole.with_name("step-000000000005.partial")
    partial.write_bytes(b"half of it")
    network = torch.nn.Linear(1, 1)

    def begun_by(replicas: Replicas) -> set[Path]:
        checkpoints = Checkpoints(tmp_path, {**IDENTITY, "data": "other"})
        Progress(
            network,
            torch.optim.SGD(network.parameters()),
            BestEpoch(DIGITS.selection),
            seed=0,
            checkpoints=checkpoints,
            log=lambda text: None,
            replicas=replicas,
        )
        return set(tmp_path.iterdir())

    assert begun_by(Replicas(1, 2)) == {whole, partial}  # the first one may be writing it
    assert begun_by(ALONE) == {whole}


def test_a_checkpoint_of_a_version_that_wrote_no_digest_is_passed_over(tmp_path: Path) -> None:
    folder = left_by(tmp_path, 4)
    for path in folder.iterdir():
        with safetensors.safe_open(path, framework="pt") as file:
            header = {"modelrail": file.metadata()["modelrail"]}
        safetensors.torch.save_file(safetensors.torch.load_file(path), path, header)
    checkpoints = Checkpoints(folder, IDENTITY)
    assert checkpoints.newest() is None
    assert checkpoints.passed_over == ("format",)


def test_a_checkpoint_of_another_specification_or_data_set_is_not_gone_on_from(
    tmp_path: Path,
) -> None:
    folder = left_by(tmp_path, 4)
    assert Checkpoints(folder, {"specification": "2"}).newest() is None
    assert Checkpoints(folder, {**IDENTITY, "data": "other"}).newest() is None


def test_a_full_disk_leaves_the_checkpoint_before_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "c"
    checkpoints = Checkpoints(folder, IDENTITY, every_steps=2)
    really = os.fsync
    calls = 0

    def full(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls > 2:  # the first checkpoint is a file and its folder
            raise OSError(errno.ENOSPC, "No space left on device")
        really(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    whole, _, said = trained(DIGITS, checkpoints)
    assert whole.step == 15
    assert said == [
        f"no checkpoint after step {step}: No space left on device; training goes on and the one "
        "before it stays; have room made on the trainer's disk"
        for step in range(4, 15, 2)
    ]
    assert [path.name for path in folder.iterdir()] == ["step-000000000002.safetensors"]
    monkeypatch.undo()
    found = Checkpoints(folder, IDENTITY).newest()
    assert found is not None
    assert found.position.step == 2


def test_checkpoints_are_due_by_steps_or_by_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_steps = Checkpoints(tmp_path / "a", IDENTITY, every_steps=3)
    assert [step for step in range(1, 10) if by_steps.is_due(step)] == [3, 6, 9]
    clock = 0.0
    monkeypatch.setattr("time.monotonic", lambda: clock)
    by_time = Checkpoints(tmp_path / "b", IDENTITY, every_seconds=30.0)
    clock = 29.9
    assert not by_time.is_due(1)
    clock = 30.0
    assert by_time.is_due(2)
