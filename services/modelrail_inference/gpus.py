"""What NVIDIA's GPUs of this machine do, as their driver counts it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

try:
    import pynvml
except ImportError:  # it comes with the extra `inference`, which is the one for GPUs
    pynvml = None


@dataclass(frozen=True, slots=True)
class GpuUsage:
    """What one GPU does, whoever uses it. None for what the GPU does not tell.

    Attributes:
        uuid: Its name, the same after every start.
        utilization: Share of the last second or less in which it computed anything, 0 to 1.
        memory_total_bytes: Its memory.
        memory_used_bytes: What of it is in use.
        power_usage_watts: Power that it takes.
        power_limit_watts: Most that it may take.
    """

    uuid: str
    utilization: float | None
    memory_total_bytes: int | None
    memory_used_bytes: int | None
    power_usage_watts: float | None
    power_limit_watts: float | None


class Gpus:
    """Looks at the GPUs; from any thread. Without a driver there are none."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_started = False

    def usage(self) -> list[GpuUsage]:
        """Returns what each GPU does now."""
        if pynvml is None:
            return []
        try:
            with self._lock:
                if not self._is_started:  # a driver can be late
                    pynvml.nvmlInit()
                    self._is_started = True
            count = pynvml.nvmlDeviceGetCount()
        except pynvml.NVMLError:
            return []
        return list(_usages(count))


def _usages(count: int) -> Iterator[GpuUsage]:
    for index in range(count):
        handle = _asked(pynvml.nvmlDeviceGetHandleByIndex, index)
        uuid = None if handle is None else _asked(pynvml.nvmlDeviceGetUUID, handle)
        if uuid is None:
            continue  # it has fallen off the bus, or is not there yet
        rates = _asked(pynvml.nvmlDeviceGetUtilizationRates, handle)
        memory = _asked(pynvml.nvmlDeviceGetMemoryInfo, handle)
        usage = _asked(pynvml.nvmlDeviceGetPowerUsage, handle)
        limit = _asked(pynvml.nvmlDeviceGetEnforcedPowerLimit, handle)
        yield GpuUsage(
            uuid,
            None if rates is None else rates.gpu / 100,
            None if memory is None else memory.total,
            None if memory is None else memory.used,
            None if usage is None else usage / 1000,  # the driver counts milliwatts
            None if limit is None else limit / 1000,
        )


def _asked(question: Callable[[Any], Any], handle: Any) -> Any:
    """Returns the answer; None where the GPU does not know it, as parts of a GPU often do not."""
    try:
        return question(handle)
    except pynvml.NVMLError:
        return None
