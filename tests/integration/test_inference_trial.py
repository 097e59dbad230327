"""A model that nobody vouched for is loaded in a throw-away process first, and harms only that."""

from __future__ import annotations

import asyncio
import random
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psutil
import pytest
from onnx import TensorProto, helper, numpy_helper

from modelrail_inference.config import InferenceConfig
from modelrail_inference.model.definition import (
    LoadError,
    TransientLoadError,
    VersionDefinition,
)
from modelrail_inference.model.provider import Provider
from modelrail_inference.repository.repository import Repository
from modelrail_inference.runtime.loader import SessionLoader
from modelrail_inference.runtime.session import Run
from modelrail_inference.runtime.trial.job import TrialLimits
from modelrail_inference.runtime.trial.trials import Trials
from modelrail_inference.service import build
from modelrail_server.application import Runtime
from modelrail_server.config import ConfigError

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
FOREVER = 3600


def save(path: Path, nodes: list[Any], weights: dict[str, Any], shape: tuple[Any, ...]) -> Path:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", FLOAT, [1])],
        [helper.make_tensor_value_info("y", FLOAT, shape)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path


def good(path: Path) -> Path:
    """y = x."""
    return save(path, [helper.make_node("Identity", ["x"], ["y"])], {}, (1,))


def endless(path: Path) -> Path:
    """A loop of as many steps as there are, whatever comes in."""
    infos = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Sin", ["v"], ["w"]),
        ],
        "body",
        [infos("i", INT64, []), infos("go", BOOL, []), infos("v", FLOAT, [1])],
        [infos("go_on", BOOL, []), infos("w", FLOAT, [1])],
    )
    weights = {"steps": np.array(2**62, np.int64), "yes": np.array(True)}
    return save(
        path, [helper.make_node("Loop", ["steps", "yes", "x"], ["y"], body=body)], weights, (1,)
    )


def huge(path: Path, operator: str) -> Path:
    """Some kilobytes of file that want 16 GiB of memory."""
    weights: dict[str, Any] = {"size": np.array([4 << 30], np.int64)}
    inputs = ["x", "size"] if operator == "Expand" else ["size"]
    return save(path, [helper.make_node(operator, inputs, ["y"])], weights, ("n",))


def limits(
    *, cpu_seconds: int = 1, memory_bytes: int = 512 << 20, timeout_seconds: float = 60.0
) -> TrialLimits:
    return TrialLimits(cpu_seconds, memory_bytes, timeout_seconds)


def loader(trials: Trials) -> SessionLoader:
    return SessionLoader(Provider.CPU, 1, 64, FOREVER, trials)


def unvouched(path: Path) -> VersionDefinition:
    return VersionDefinition("m", 1, path, "1", vouched=False)


@pytest.fixture
def trials() -> Iterator[Trials]:
    made = Trials(limits())
    yield made
    made.close()


@pytest.fixture
def patient() -> Iterator[Trials]:
    """Trials that only a signal ends."""
    made = Trials(limits(cpu_seconds=FOREVER))
    yield made
    made.close()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as made:
        yield made


def refusal(load: Future[Any]) -> LoadError:
    with pytest.raises(LoadError) as caught:
        load.result(30)
    return caught.value


def running_child(process: psutil.Process) -> psutil.Process:
    """Waits for a trial to run."""
    waiting = threading.Event()
    while not (children := process.children()):
        waiting.wait(0.01)
    return children[0]


def server_of(trials: Trials) -> psutil.Process:
    waiting = threading.Event()
    while trials.pid is None:
        waiting.wait(0.01)
    return psutil.Process(trials.pid)


def test_a_good_model_is_loaded_after_its_trial(trials: Trials, tmp_path: Path) -> None:
    model = loader(trials).load(unvouched(good(tmp_path / "m.onnx")))
    assert model.session is not None
    assert model.session.run({"x": np.ones(1, np.float32)}, ["y"], Run())[0].tolist() == [1.0]
    server = server_of(trials)
    assert server.num_threads() == 1  # it forks
    assert server.children() == []


def test_what_somebody_vouched_for_has_no_trial(trials: Trials, tmp_path: Path) -> None:
    loader(trials).load(VersionDefinition("m", 1, good(tmp_path / "m.onnx"), "1"))
    assert trials.pid is None


def test_a_model_that_computes_for_ever_is_stopped_by_its_cpu_time(
    trials: Trials, tmp_path: Path
) -> None:
    with pytest.raises(LoadError, match=r"^the trial load was stopped after 1 s of CPU time$"):
        loader(trials).load(unvouched(endless(tmp_path / "m.onnx")))


@pytest.mark.parametrize("operator", ["Expand", "ConstantOfShape"])
def test_a_model_that_wants_gigabytes_is_refused(
    trials: Trials, tmp_path: Path, operator: str
) -> None:
    with pytest.raises(LoadError, match="needed more than 536870912 bytes of memory") as caught:
        loader(trials).load(unvouched(huge(tmp_path / "m.onnx", operator)))
    assert not isinstance(caught.value, TransientLoadError)


def test_a_trial_that_takes_too_long_is_stopped(tmp_path: Path) -> None:
    trials = Trials(limits(cpu_seconds=FOREVER, timeout_seconds=1.0))
    try:
        with pytest.raises(TransientLoadError, match=r"^the trial load was stopped after 1 s$"):
            loader(trials).load(unvouched(endless(tmp_path / "m.onnx")))
        assert psutil.wait_procs(server_of(trials).children(), timeout=10)[1] == []
    finally:
        trials.close()


def test_a_model_that_ends_its_process_by_a_signal_is_refused(
    patient: Trials, tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    load = pool.submit(loader(patient).load, unvouched(endless(tmp_path / "m.onnx")))
    server = server_of(patient)
    running_child(server).send_signal(signal.SIGSEGV)
    assert str(refusal(load)) == "the trial load was ended by SIGSEGV"
    assert patient.pid == server.pid


def test_damaged_files_are_refused_and_end_nothing(trials: Trials, tmp_path: Path) -> None:
    whole = huge(tmp_path / "whole.onnx", "Expand").read_bytes()
    model = loader(trials)
    model.load(unvouched(good(tmp_path / "good.onnx")))
    server = trials.pid
    chance = random.Random(5)  # noqa: S311 - the same damage in each run
    damaged = [
        *(whole[: chance.randrange(1, len(whole))] for _ in range(15)),
        *(chance.randbytes(chance.randrange(1, 300)) for _ in range(10)),
    ]
    for _ in range(25):
        flipped = bytearray(whole)
        flipped[chance.randrange(len(flipped))] ^= 1 << chance.randrange(8)
        damaged.append(bytes(flipped))
    reasons: list[str] = []
    for number, content in enumerate(damaged):
        path = tmp_path / f"{number}.onnx"
        path.write_bytes(content)
        try:
            model.load(unvouched(path))
        except LoadError as error:
            reasons.append(str(error))
    assert not any(str(tmp_path) in reason for reason in reasons)
    assert len(reasons) > len(damaged) / 2  # a few flips change a name, and nothing that counts
    assert trials.pid == server


@pytest.fixture(params=[False, True], ids=["at once", "late"])
def noticed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of a process is noticed at once, or only when it takes no more trials."""
    if not request.param:
        return
    refused = threading.Event()
    send, wait = socket.send_fds, subprocess.Popen.wait

    def sending(*arguments: Any) -> int:
        try:
            return send(*arguments)
        except ConnectionError:
            refused.set()
            raise

    def waiting(process: subprocess.Popen[bytes], timeout: float | None = None) -> int:
        code = wait(process, timeout)
        refused.wait(30)
        return code

    monkeypatch.setattr(socket, "send_fds", sending)
    monkeypatch.setattr(subprocess.Popen, "wait", waiting)


@pytest.mark.usefixtures("noticed")
def test_a_killed_process_of_trials_is_replaced_and_the_trial_repeated(
    patient: Trials, tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    load = pool.submit(loader(patient).load, unvouched(endless(tmp_path / "m.onnx")))
    first = server_of(patient)
    child = running_child(first)
    first.kill()
    assert psutil.wait_procs([child], timeout=10)[1] == []
    waiting = threading.Event()
    while patient.pid in (None, first.pid):
        assert not load.done(), load.exception()
        waiting.wait(0.01)
    running_child(server_of(patient)).send_signal(signal.SIGABRT)
    assert str(refusal(load)) == "the trial load was ended by SIGABRT"


def test_an_idle_process_of_trials_ends_and_comes_back(tmp_path: Path) -> None:
    trials = Trials(limits(), idle_seconds=0.05)
    definition = unvouched(good(tmp_path / "m.onnx"))
    try:
        loader(trials).load(definition)
        first = trials.pid
        if first is not None:  # it may have gone already
            psutil.Process(first).wait(10)
        loader(trials).load(definition)
    finally:
        trials.close()


def test_a_trial_in_progress_ends_when_the_service_does(
    patient: Trials, tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    load = pool.submit(loader(patient).load, unvouched(endless(tmp_path / "m.onnx")))
    server = server_of(patient)
    child = running_child(server)
    patient.close()
    assert isinstance(refusal(load), TransientLoadError)
    assert psutil.wait_procs([child, server], timeout=10)[1] == []


async def test_one_file_that_computes_for_ever_ends_the_start(tmp_path: Path) -> None:
    config = InferenceConfig(
        model=endless(tmp_path / "m.onnx"),
        data_dir=tmp_path / "data",
        provider=Provider.CPU,
        trial_cpu_seconds=1,
    )
    with pytest.raises(ConfigError, match="was stopped after 1 s of CPU time"):
        async with build(config, Runtime("inference")):
            pass


PARENT = """
import sys
from pathlib import Path
from modelrail_inference.model.definition import VersionDefinition
from modelrail_inference.runtime.loader import SessionLoader
from modelrail_inference.model.provider import Provider
from modelrail_inference.runtime.trial.job import TrialLimits
from modelrail_inference.runtime.trial.trials import Trials

loader = SessionLoader(Provider.CPU, 1, 64, 3600, Trials(TrialLimits(3600, 1 << 30, 3600.0)))
loader.load(VersionDefinition("m", 1, Path(sys.argv[1]), "1", vouched=False))
"""


def test_a_killed_service_leaves_nothing_behind(tmp_path: Path) -> None:
    path = endless(tmp_path / "m.onnx")
    with subprocess.Popen([sys.executable, "-c", PARENT, str(path)]) as parent:
        try:
            server = running_child(psutil.Process(parent.pid))
            child = running_child(server)
        finally:
            parent.kill()
    assert psutil.wait_procs([server, child], timeout=10)[1] == []


async def test_other_models_are_loaded_and_answer_during_a_trial(
    patient: Trials, tmp_path: Path
) -> None:
    repository = Repository(loader(patient), load_threads=2)
    bad = unvouched(endless(tmp_path / "bad.onnx"))
    load = asyncio.create_task(repository.reconcile("bad", [bad]))
    child = await asyncio.to_thread(lambda: running_child(server_of(patient)))
    await repository.reconcile("good", [unvouched(good(tmp_path / "good.onnx"))])
    (version,) = repository.ready_versions("good")
    assert version.serving is not None
    session = version.serving.model.session
    assert session is not None
    assert session.run({"x": np.ones(1, np.float32)}, ["y"], Run())[0].tolist() == [1.0]
    assert not load.done()
    child.send_signal(signal.SIGBUS)
    with pytest.raises(LoadError, match="ended by SIGBUS"):
        await load
    await repository.close()
