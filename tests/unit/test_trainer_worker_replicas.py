"""How batches are shared among processes, and data without copying it."""

from __future__ import annotations

import threading
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed as dist
from torch._C._distributed_c10d import TCPStore

from modelrail_trainer.spec import CrossEntropy, Device
from modelrail_trainer.worker.learning import replicas
from modelrail_trainer.worker.learning.losses import at_each_place, loss_function, row_weights
from modelrail_trainer.worker.learning.replicas import (
    ALONE,
    Replicas,
    join_replicas,
    tells_of_a_lost_replica,
)
from modelrail_trainer.worker.part import Part


@pytest.mark.parametrize(("rows", "count"), [(7, 3), (6, 3), (2, 3), (1, 2), (32, 2)])
def test_the_mean_over_processes_is_the_mean_over_the_batch(rows: int, count: int) -> None:
    batch = torch.arange(100, 100 + rows)
    losses = torch.rand(200, dtype=torch.float64)
    mean = 0.0
    seen: list[int] = []
    for rank in range(count):
        mine, weight = Replicas(rank, count).share(batch)
        assert len(mine) > 0  # each takes part in each step
        mean += weight * float(losses[mine].mean()) / count
        seen += mine.tolist() if weight else []
    assert sorted(seen) == batch.tolist()
    assert mean == pytest.approx(float(losses[batch].mean()))


@pytest.mark.parametrize(("rows", "count"), [(8, 2), (7, 3), (2, 3)])
@pytest.mark.parametrize("places", [None, 5])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_mean_that_class_weights_divide_is_the_same_over_processes(
    rows: int, count: int, places: int | None, smoothing: float
) -> None:
    loss = CrossEntropy(class_weights=(1.0, 20.0, 0.5), label_smoothing=smoothing)
    loss_of, weights_of = loss_function(loss), row_weights(loss)
    assert weights_of is not None
    shape = (rows,) if places is None else (rows, places)
    if places is not None:
        loss_of = at_each_place(loss_of)
    draw = torch.Generator().manual_seed(rows)
    logits = torch.randn(*shape, 3, generator=draw, dtype=torch.float64)
    classes = torch.randint(3, shape, generator=draw)
    batch = torch.arange(rows)
    mean = 0.0
    for rank in range(count):
        mine, weight = Replicas(rank, count).share(batch, weights_of(classes))
        mean += weight * float(loss_of(logits[mine], classes[mine])) / count
    assert mean == pytest.approx(float(loss_of(logits, classes)))


def test_one_process_takes_the_batch_as_it_is() -> None:
    batch = torch.arange(5)
    mine, weight = ALONE.share(batch)
    assert mine is batch
    assert weight == 1.0


def test_rows_in_files_are_sent_by_their_place(tmp_path: Path) -> None:
    stream = np.arange(60, dtype=np.int16)
    (tmp_path / "stream").write_bytes(b"head" + stream.tobytes())
    mapped = np.memmap(tmp_path / "stream", np.int16, "r+", offset=4)
    for part in (mapped, mapped[10:30], mapped[20:].reshape(5, 8), np.asarray(mapped)[1:]):
        place = replicas._place_of(part)
        assert isinstance(place, replicas._InFile)
        again = replicas._array_at(place)
        assert isinstance(again, np.memmap)
        np.testing.assert_array_equal(again, part)


def test_rows_in_memory_and_rows_that_leave_gaps_are_sent_themselves(tmp_path: Path) -> None:
    mapped = np.memmap(tmp_path / "stream", np.int16, "w+", shape=(6, 4))
    mapped[:] = np.arange(24).reshape(6, 4)
    for part in (np.arange(4), mapped[::2], mapped[:, 1:]):
        place = replicas._place_of(part)
        assert not isinstance(place, (replicas._InFile, np.memmap))
        np.testing.assert_array_equal(replicas._array_at(place), part)


def test_all_processes_agree_on_which_rows_lie_in_a_file(tmp_path: Path) -> None:
    mapped = np.memmap(tmp_path / "stream", np.uint8, "w+", shape=(40,))
    windows = np.lib.stride_tricks.sliding_window_view(mapped, 9, writeable=True)[::8]
    found = []
    for inputs in (windows[:, :-1], windows[:, 1:], windows, mapped.reshape(8, 5)[::2]):
        there = replicas._array_at(replicas._place_of(inputs))
        np.testing.assert_array_equal(there, inputs)
        found.append((Part(inputs, inputs).is_mapped, Part(there, there).is_mapped))
    # Rows that overlap or leave gaps are sent themselves.
    assert found == [(True, True), (True, True), (False, False), (False, False)]


def test_a_process_that_a_checkpoint_does_not_know_has_random_numbers_of_its_own() -> None:
    torch.manual_seed(3)
    known = ALONE.random_states()
    drawn = torch.rand(4)
    torch.rand(1)
    Replicas(0, 2).restore_random(known, seed=3)
    assert torch.equal(torch.rand(4), drawn)
    Replicas(1, 2).restore_random(known, seed=3)
    other = torch.rand(4)
    assert not torch.equal(other, drawn)
    Replicas(1, 2).restore_random(known, seed=3)
    assert torch.equal(torch.rand(4), other)


def test_a_process_does_not_wait_for_days_for_one_that_never_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(replicas, "_MEETING", timedelta(seconds=1))
    # As torchrun's agent keeps it, which lives.
    agent = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environ = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(agent.port),
        "RANK": "1",
        "WORLD_SIZE": "2",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    missed: list[Exception] = []

    def join() -> None:
        try:
            join_replicas(Device.CPU)
        except dist.DistError as error:
            missed.append(error)

    # Nothing interrupts a wait within torch.
    joining = threading.Thread(target=join, daemon=True)
    joining.start()
    joining.join(30)
    (error,) = missed
    assert tells_of_a_lost_replica(error)
    assert not dist.is_initialized()
