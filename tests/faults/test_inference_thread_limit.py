"""A service that may start no more threads and processes: refused loads, and no other harm.

Row 54 of the acceptance table, with a limit as containers have it: a cgroup of its own.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import psutil
import pytest

from modelrail.oip.v2 import grpc_service_pb2 as pb
from modelrail.oip.v2.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from tests.faults.conftest import Start
from tests.faults.models import counting, doubling, output, request_for
from tests.faults.service import SECONDS, Service
from tests.faults.stub_callers import ROW, called_all_the_time

PIDS = Path("/sys/fs/cgroup/pids")
UNLIMITED = "max"


class Limit:
    """A bound on the threads and processes of whatever is started with `wrapper`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        enter = f'echo $$ > "{folder}/cgroup.procs" && exec "$@"'
        self.wrapper = ("sh", "-c", enter, "sh")

    def set(self, most: int | str) -> None:
        (self._folder / "pids.max").write_text(str(most))

    def used(self) -> int:
        return int((self._folder / "pids.current").read_text())

    def refusals(self) -> int:
        """How often something was not started."""
        return int((self._folder / "pids.events").read_text().split()[1])


@pytest.fixture
def limit() -> Iterator[Limit]:
    folder = PIDS / f"modelrail-test-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup for processes can be made here: {error.strerror}")
    made = Limit(folder)
    yield made
    end = time.monotonic() + SECONDS
    while made.used() and time.monotonic() < end:  # what was killed takes a moment to go
        time.sleep(0.02)
    folder.rmdir()


@asynccontextmanager
async def answered_all_the_time(service: Service) -> AsyncIterator[Any]:
    """A stub, and a caller on the same connection who is answered during all of it."""
    async with called_all_the_time(service, count=1) as (stub, callers):
        yield stub
    assert set(callers.answers) == {2.0}


async def load(stub: Any, model: str) -> str:
    """Loads a model; returns why it was not loaded, empty if it was."""
    request = pb.RepositoryModelLoadRequest(model_name=model)
    try:
        await stub.RepositoryModelLoad(request, timeout=SECONDS)
    except grpc.aio.AioRpcError as error:
        return f"{error.code().name}: {error.details()}"
    return ""


async def reason_in_index(stub: Any, model: str) -> str:
    index = await stub.RepositoryIndex(pb.RepositoryIndexRequest(), timeout=SECONDS)
    return next(str(row.reason) for row in index.models if row.name == model)


async def settled(limit: Limit) -> int:
    """How many threads and processes there are, once those of the last load have ended."""
    seen = [0]
    async with asyncio.timeout(SECONDS):
        while len(seen) < 5 or len(set(seen[-5:])) > 1:
            seen.append(limit.used())
            await asyncio.sleep(0.02)
    return seen[-1]


async def refusals_of(
    limit: Limit, stub: Any, model: str, prepare: Callable[[], None]
) -> list[str]:
    """Loads with one thread more each time, until there are enough; returns the refusals."""
    refusals: list[str] = []
    for spare in range(20):
        await asyncio.to_thread(prepare)
        before = limit.refusals()
        limit.set(await settled(limit) + spare)
        refused = await load(stub, model)
        limit.set(UNLIMITED)
        print(spare, "spare:", refused or "loaded")
        if not refused:
            return refusals
        assert limit.refusals() > before
        assert refused.endswith(await reason_in_index(stub, model))
        refusals.append(refused)
    raise AssertionError(f"{model} is never loaded: {refusals[-1]}")


async def test_a_load_without_threads_is_refused_with_its_reason_and_later_done(
    limit: Limit, start: Start
) -> None:
    """With each number of threads that is too small something else cannot be started."""
    service = start(models=(doubling,), wrapper=limit.wrapper)
    counting(service.models / "counting")
    async with answered_all_the_time(service) as stub:
        refusals = await refusals_of(limit, stub, "counting", lambda: None)
        assert len(refusals) > 1
        assert all("no thread could be started" in refused for refused in refusals)
        reply = await stub.ModelInfer(request_for("counting", np.array(3, np.int64)))
        assert output(reply) == [3.0]
    assert service.stop() == 0


async def test_a_model_without_a_session_thread_refuses_and_later_answers(
    limit: Limit, start: Start
) -> None:
    """The first request needs a thread; a scrape meanwhile needs one too."""
    service = start(models=(doubling,), wrapper=limit.wrapper)
    limit.set(1)  # whatever thread may end just now: no other takes its place
    async with service.aio_channel() as channel:
        stub: Any = GRPCInferenceServiceStub(channel)
        # A quick model needs some runs on a thread before it runs without.
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ModelInfer(request_for("doubling", ROW), timeout=SECONDS)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "no thread could be started" in str(caught.value.details())
        assert "grpc-retry-pushback-ms" in dict(caught.value.trailing_metadata() or ())
        for _ in range(20):
            with pytest.raises(OSError, match=r"Remote end|reset|closed"):
                service.metric("nv_inference_count")
        limit.set(UNLIMITED)
        reply = await stub.ModelInfer(request_for("doubling", ROW), timeout=SECONDS)
        assert output(reply) == [[2.0] * 4]
    assert service.metric("nv_inference_count") == 1
    assert service.stop() == 0


@pytest.mark.parametrize(
    ("killed", "said"),
    [
        (True, "the trial load could not be started"),
        (False, "no process could be started for the trial"),
    ],
    ids=["no-process-of-trials", "no-child-of-it"],
)
async def test_a_trial_without_a_process_fails_the_load_and_the_old_version_serves(
    limit: Limit, start: Start, killed: bool, said: str
) -> None:
    service = start(models=(doubling,), wrapper=limit.wrapper, vouched=False)
    os.utime(service.models / "doubling" / "1" / "model.onnx", (1, 1))

    def end_the_process_of_trials() -> None:
        children = psutil.Process(service.process.pid).children() if killed else []
        for child in children:
            child.kill()
        assert not psutil.wait_procs(children, timeout=SECONDS)[1]

    async with answered_all_the_time(service) as stub:
        refusals = await refusals_of(limit, stub, "doubling", end_the_process_of_trials)
        assert any(said in refused for refused in refusals)
        assert all("could be started" in r or "could not be started" in r for r in refusals)
        assert await reason_in_index(stub, "doubling") == ""
    assert service.stop() == 0


def test_a_start_without_threads_ends_and_says_why(
    limit: Limit, start: Start, tmp_path: Path
) -> None:
    needed = threads_of_a_start(limit, start)
    limit.set(needed - 2)
    command = [
        *limit.wrapper, sys.executable, "-m", "modelrail_inference", "--vouched",
        "--model-repository", str(tmp_path / "service-0" / "models"),
        "--data-dir", str(tmp_path / "data"),
        "--grpc-address", "127.0.0.1:0", "--metrics-address", "127.0.0.1:0",
    ]  # fmt: skip
    ended = subprocess.run(command, timeout=60, capture_output=True, text=True, check=False)
    print(needed, "threads are needed;", ended.returncode, ended.stderr[-300:])
    assert ended.returncode != 0
    assert "can't start new thread" in ended.stderr or "pthread_create failed" in ended.stderr


def threads_of_a_start(limit: Limit, start: Start) -> int:
    service = start(models=(doubling,), wrapper=limit.wrapper)
    used = limit.used()
    assert service.stop() == 0
    return used
