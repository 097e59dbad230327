"""CPU and memory of the machine, as the kernel counts them."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class HostUsage:
    """What the whole machine uses; a container does not bound it.

    Attributes:
        cpu_utilization: Share of the CPUs' time that was not idle since the last look, 0 to 1.
        memory_total_bytes: Memory of the machine.
        memory_used_bytes: What of it is not available for new work.
    """

    cpu_utilization: float
    memory_total_bytes: int
    memory_used_bytes: int


class Host:
    """Looks at the machine; from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._utilization = 0.0
        self._seen = _cpu_ticks()

    def usage(self) -> HostUsage | None:
        """Returns what is used now; None where the kernel does not tell."""
        now, memory = _cpu_ticks(), _memory_bytes()
        if now is None or memory is None:
            return None
        with self._lock:
            if self._seen is not None and (total := now[1] - self._seen[1]) > 0:
                self._utilization = min(1.0, max(0.0, (now[0] - self._seen[0]) / total))
            self._seen = now
            return HostUsage(self._utilization, *memory)


def _cpu_ticks() -> tuple[int, int] | None:
    """Returns the ticks of all CPUs since the start that were not idle, and all ticks."""
    try:
        first = Path("/proc/stat").read_text(encoding="ascii").partition("\n")[0]
        # user, nice, system, idle, iowait, irq, softirq, steal; guest time is in user already
        ticks = [int(number) for number in first.split()[1:9]]
        total = sum(ticks)
        return total - ticks[3] - ticks[4], total
    except (OSError, ValueError, IndexError):
        return None


def _memory_bytes() -> tuple[int, int] | None:
    """Returns the memory that is there, and how much of it is used."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found = {name: int(rest.split()[0]) * 1024 for name, _, rest in _parted(lines)}
        return found["MemTotal"], found["MemTotal"] - found["MemAvailable"]
    except (OSError, ValueError, KeyError, IndexError):
        return None


def _parted(lines: list[str]) -> list[tuple[str, str, str]]:
    return [line.partition(":") for line in lines if line]
