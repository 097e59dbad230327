"""A new version that cannot be loaded, beside one that serves: nobody notices but whoever loads it.

Row 41 of the acceptance table: a damaged file, a load that hangs where nothing can stop it, a first
run that never ends, and a load that crashes its process.
"""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import grpc.aio
import onnx
import psutil
import pytest
from onnx import TensorProto, helper

from modelrail.oip.v2 import grpc_service_pb2 as pb
from tests.faults.conftest import Start
from tests.faults.models import doubling, stuck
from tests.faults.service import SECONDS, Service, eventually
from tests.faults.stub_callers import Callers, called_all_the_time

FACTOR = 3.0
"""By which a good second version multiplies, so that its answers are told from the first's."""


async def refusal(stub: Any) -> tuple[grpc.StatusCode, str]:
    """Loads the model anew, which must fail; returns with what."""
    request = pb.RepositoryModelLoadRequest(model_name="doubling")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.RepositoryModelLoad(request, timeout=SECONDS)
    print(caught.value.code().name, caught.value.details())
    return caught.value.code(), str(caught.value.details())


async def index(stub: Any) -> dict[str, tuple[str, str]]:
    """The state of each version, and why it is no better."""
    rows = await stub.RepositoryIndex(pb.RepositoryIndexRequest(), timeout=SECONDS)
    return {row.version: (row.state, row.reason) for row in rows.models}


async def is_refused(stub: Any, reason: str, callers: Callers) -> None:
    """The second version is refused for that reason; the first is READY and answered alone."""
    answered = len(callers.answers)
    _, said = await refusal(stub)
    assert reason in said
    assert "/" not in said.replace("'doubling'", ""), "a path was told"
    states = await index(stub)
    assert states["1"] == ("READY", "")
    state, why = states["2"]
    assert state == "UNAVAILABLE"
    assert reason in why
    assert not (await ready(stub, "2")).ready
    assert (await ready(stub, "")).ready
    await eventually(lambda: len(callers.answers) > answered + 20 or bool(callers.failures))
    assert set(callers.answers) == {2.0}


async def ready(stub: Any, version: str) -> pb.ModelReadyResponse:
    request = pb.ModelReadyRequest(name="doubling", version=version)
    reply: pb.ModelReadyResponse = await stub.ModelReady(request, timeout=SECONDS)
    return reply


async def mend(service: Service, stub: Any, callers: Callers) -> None:
    """Puts a good file in the place of the bad one: it is loaded, and takes over."""
    good = service.models.parent / "good"
    doubling(good, FACTOR)
    replace(good / "1" / "model.onnx", second(service))
    request = pb.RepositoryModelLoadRequest(model_name="doubling")
    await stub.RepositoryModelLoad(request, timeout=SECONDS)
    assert (await index(stub))["2"] == ("READY", "")
    await eventually(lambda: callers.answers[-1] == FACTOR or bool(callers.failures))


def second(service: Service) -> Path:
    """Where the file of the second version is."""
    path = service.models / "doubling" / "2" / "model.onnx"
    path.parent.mkdir(exist_ok=True)
    return path


def replace(source: Path, target: Path) -> None:
    new = target.with_name("new")
    new.write_bytes(source.read_bytes())
    os.replace(new, target)  # noqa: PTH105 - a rename takes no time


def explosive(path: Path, levels: int = 16) -> None:
    """A kilobyte that takes ten seconds to load: functions that each call the next one twice."""
    opset = [helper.make_opsetid("", 18), helper.make_opsetid("f", 1)]
    functions = []
    for level in range(levels):
        callee = f"f{level + 1}"
        nodes = [
            helper.make_node(callee, ["a"], ["b"], domain="f"),
            helper.make_node(callee, ["b"], ["c"], domain="f"),
        ]
        if level == levels - 1:
            nodes = [helper.make_node("Neg", ["a"], ["b"]), helper.make_node("Neg", ["b"], ["c"])]
        functions.append(helper.make_function("f", f"f{level}", ["a"], ["c"], nodes, opset))
    graph = helper.make_graph(
        [helper.make_node("f0", ["x"], ["y"], domain="f")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
    )
    model = helper.make_model(graph, opset_imports=opset, ir_version=9, functions=functions)
    onnx.save(model, path)


def endless(service: Service) -> None:
    """A second version whose first run never ends."""
    folder = service.models.parent / "endless"
    stuck(folder)
    (service.models / "doubling" / "config.pbtxt").unlink()  # it has no batch dimension
    replace(folder / "1" / "model.onnx", second(service))


@pytest.mark.parametrize("vouched", [True, False])
async def test_a_damaged_new_version_is_refused_and_the_old_one_serves(
    start: Start, vouched: bool
) -> None:
    service = start(models=(doubling,), vouched=vouched)
    whole = (service.models / "doubling" / "1" / "model.onnx").read_bytes()
    async with called_all_the_time(service) as (stub, callers):
        for damaged in (whole[: len(whole) // 2], b"", bytes(range(250)) * 2):
            second(service).write_bytes(damaged)
            reason = "is empty" if not damaged else "not a model that ONNX Runtime can load"
            await is_refused(stub, reason, callers)
        await mend(service, stub, callers)


async def test_a_new_version_whose_load_hangs_is_given_up_and_the_old_one_serves(
    start: Start,
) -> None:
    """Nothing stops the parser, so the load goes on by itself until it ends."""
    service = start("--load-timeout-seconds", "1", models=(doubling,))
    explosive(second(service))
    async with called_all_the_time(service) as (stub, callers):
        await is_refused(stub, "took longer than 1 s", callers)
        # The place of the load is free again, though its thread still works.
        await mend(service, stub, callers)


async def test_a_new_version_whose_first_run_never_ends_is_stopped_and_the_old_one_serves(
    start: Start,
) -> None:
    service = start("--warmup-timeout-seconds", "1", models=(doubling,))
    endless(service)
    async with called_all_the_time(service) as (stub, callers):
        await is_refused(stub, "the warm-up took longer than 1 s", callers)
        await mend(service, stub, callers)


async def test_a_new_version_whose_trial_hangs_is_stopped_and_the_old_one_serves(
    start: Start,
) -> None:
    flags = ("--trial-timeout-seconds", "1", "--trial-cpu-seconds", "60")
    service = start(*flags, models=(doubling,), vouched=False)
    explosive(second(service))
    async with called_all_the_time(service) as (stub, callers):
        await is_refused(stub, "the trial load was stopped after 1 s", callers)
        await mend(service, stub, callers)


async def test_a_new_version_that_crashes_its_trial_is_refused_and_the_old_one_serves(
    start: Start,
) -> None:
    service = start("--trial-cpu-seconds", "600", models=(doubling,), vouched=False)
    endless(service)

    async def crash() -> None:
        processes = psutil.Process(service.process.pid)

        def trials() -> list[psutil.Process]:
            return [one for server in processes.children() for one in server.children()]

        await eventually(lambda: bool(trials()))
        for trial in trials():
            trial.send_signal(signal.SIGSEGV)

    async with called_all_the_time(service) as (stub, callers):
        crashing = asyncio.create_task(crash())
        await is_refused(stub, "the trial load was ended by SIGSEGV", callers)
        await crashing
        await mend(service, stub, callers)
