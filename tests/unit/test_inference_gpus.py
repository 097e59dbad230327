"""NVIDIA's GPUs in the metrics, by a driver that is played here."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pynvml
import pytest
from prometheus_client.core import Metric

from modelrail_inference import gpus
from modelrail_inference.gpus import Gpus, GpuUsage
from modelrail_inference.metrics import InferenceCollector
from modelrail_inference.repository.repository import Repository

WHOLE = GpuUsage("GPU-1", 0.37, 80 << 30, 3 << 30, 123.4, 700.0)
PART = GpuUsage("MIG-2", None, 10 << 30, 1 << 30, None, None)


class Driver:
    """Answers for two GPUs what `pynvml` asks the real one: a whole GPU, and a part of one."""

    def __init__(self) -> None:
        self.starts = 0
        self.lost: set[int] = set()

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        answers = {
            "nvmlInit": self._start,
            "nvmlDeviceGetCount": lambda: 2,
            "nvmlDeviceGetHandleByIndex": self._handle,
            "nvmlDeviceGetUUID": self._uuid,
            "nvmlDeviceGetMemoryInfo": self._memory,
            "nvmlDeviceGetUtilizationRates": lambda handle: SimpleNamespace(
                gpu=self._of_the_whole(handle, 37)
            ),
            "nvmlDeviceGetPowerUsage": lambda handle: self._of_the_whole(handle, 123_400),
            "nvmlDeviceGetEnforcedPowerLimit": lambda handle: self._of_the_whole(handle, 700_000),
        }
        for name, answer in answers.items():
            monkeypatch.setattr(pynvml, name, answer)

    def _start(self) -> None:
        self.starts += 1

    def _handle(self, index: int) -> int:
        if index in self.lost:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        return index

    def _uuid(self, handle: int) -> str:
        return ("GPU-1", "MIG-2")[handle]

    def _memory(self, handle: int) -> Any:
        used, total = ((3, 80), (1, 10))[handle]
        return SimpleNamespace(total=total << 30, used=used << 30)

    def _of_the_whole(self, handle: int, number: int) -> int:
        if handle:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return number


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    driver = Driver()
    driver.install(monkeypatch)
    return driver


def collected() -> list[Metric]:
    return list(InferenceCollector(Repository(cast("Any", None))).collect())


def test_every_gpu_tells_what_it_does_and_a_part_what_it_knows(driver: Driver) -> None:
    seen = Gpus()
    assert seen.usage() == [WHOLE, PART]
    assert seen.usage() == [WHOLE, PART]
    assert driver.starts == 1


def test_a_gpu_that_is_lost_is_left_out(driver: Driver) -> None:
    seen = Gpus()
    seen.usage()
    driver.lost.add(0)
    assert seen.usage() == [PART]


def test_a_driver_that_is_late_is_looked_for_again(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, start = Gpus(), pynvml.nvmlInit

    def missing() -> None:
        raise pynvml.NVMLError_LibraryNotFound

    monkeypatch.setattr(pynvml, "nvmlInit", missing)
    assert seen.usage() == []
    monkeypatch.setattr(pynvml, "nvmlInit", start)
    assert seen.usage() == [WHOLE, PART]


def test_a_gpu_that_does_not_answer_at_first_hides_neither_itself_for_good_nor_the_others(
    driver: Driver,
) -> None:
    driver.lost.add(0)
    seen = Gpus()
    assert seen.usage() == [PART]
    driver.lost.clear()
    assert seen.usage() == [WHOLE, PART]


def test_without_a_driver_or_its_package_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise pynvml.NVMLError_LibraryNotFound

    monkeypatch.setattr(pynvml, "nvmlInit", missing)
    assert Gpus().usage() == []
    monkeypatch.setattr(gpus, "pynvml", None)
    assert Gpus().usage() == []


@pytest.mark.usefixtures("driver")
def test_gpus_are_shown_under_tritons_names() -> None:
    shown = {
        (sample.name, sample.labels["gpu_uuid"]): sample.value
        for family in collected()
        if family.name.startswith("nv_gpu_")
        for sample in family.samples
    }
    assert shown == {
        ("nv_gpu_utilization", "GPU-1"): 0.37,
        ("nv_gpu_memory_total_bytes", "GPU-1"): 80 << 30,
        ("nv_gpu_memory_total_bytes", "MIG-2"): 10 << 30,
        ("nv_gpu_memory_used_bytes", "GPU-1"): 3 << 30,
        ("nv_gpu_memory_used_bytes", "MIG-2"): 1 << 30,
        ("nv_gpu_power_usage", "GPU-1"): 123.4,
        ("nv_gpu_power_limit", "GPU-1"): 700.0,
    }


def test_a_machine_without_gpus_shows_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "pynvml", None)
    names = [family.name for family in collected()]
    assert not [name for name in names if name.startswith("nv_gpu_")]
    assert "nv_cpu_utilization" in names
