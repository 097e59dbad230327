"""What health says of models and of the whole when a device fails."""

from __future__ import annotations

from modelrail_inference.health import InferenceHealth
from modelrail_inference.model.definition import LoadedModel
from modelrail_inference.model.provider import Provider
from modelrail_inference.model.signature import Signature
from modelrail_inference.protocol.policy import SERVICE
from modelrail_server.standard.health import Health
from modelrail_server.supervision.parts import MergedParts, PartsOfWorker

WHOLE = ("", SERVICE)


def model_of(name: str) -> LoadedModel:
    return LoadedModel(name, 1, Signature((), ()), 0, Provider.CUDA, session=None)


class Worker:
    """A worker's models and what it tells callers."""

    def __init__(self, number: int, merged: MergedParts) -> None:
        self.shown = Health()
        self.parts = PartsOfWorker(
            self.shown, lambda name, serving: merged.say(number, name, serving)
        )
        self.loaded = [model_of("a"), model_of("b")]
        self.health = InferenceHealth(self.parts, lambda: self.loaded)
        for model in self.loaded:
            self.health.changed(model.model, ready=True)

    def fail(self, name: str) -> None:
        for model in self.loaded:
            if model.model == name:
                model.device_failure = "the device failed"
        self.health.device_failed(name)

    def serving(self, *names: str) -> list[bool | None]:
        return [self.shown.serving(name) for name in names]


class Supervisor:
    """Two workers that serve."""

    def __init__(self) -> None:
        self.workers: list[Worker] = []
        self.merged = MergedParts(lambda number, states: self.workers[number].parts.told(states))
        for number in (0, 1):
            self.workers.append(Worker(number, self.merged))
            self.merged.join(number)


async def test_every_worker_tells_of_the_one_whose_device_failed() -> None:
    supervisor = Supervisor()
    first, second = supervisor.workers
    assert second.serving(*WHOLE, "infer/a", "infer/b") == [True] * 4
    first.fail("a")
    for worker in (first, second):
        assert worker.serving(*WHOLE, "infer/a", "infer/b") == [False, False, False, True]


async def test_all_is_well_again_with_a_worker_in_place_of_the_one_whose_device_failed() -> None:
    supervisor = Supervisor()
    supervisor.workers[0].fail("a")
    supervisor.merged.leave(0)
    assert supervisor.workers[1].serving(*WHOLE, "infer/a") == [True] * 3
    supervisor.workers[0] = Worker(0, supervisor.merged)
    supervisor.merged.join(0)
    for worker in supervisor.workers:
        assert worker.serving(*WHOLE, "infer/a") == [True] * 3


async def test_a_run_that_outlives_its_model_makes_it_neither_serve_nor_fail() -> None:
    worker = Supervisor().workers[0]
    worker.loaded.pop(0)
    worker.health.changed("a", ready=False)
    worker.fail("a")
    assert worker.serving(*WHOLE, "infer/a") == [True, True, False]
