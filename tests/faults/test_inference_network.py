"""A network that is cut in the middle of streams, of which neither end is told.

Row 21 of the acceptance table.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from modelrail.client import AsyncInferenceClient, Connection, open_channel
from tests.faults.conftest import Start
from tests.faults.conversation import ANSWERED, SHORT, converse
from tests.faults.line import line_to
from tests.faults.models import echo
from tests.faults.service import MIB, Service

CLIENTS = 10
MEGABYTE_OF_COLUMNS = 1 << 18
SOON = ("--keepalive-time-seconds", "1", "--keepalive-timeout-seconds", "0.5")


def streams_of(service: Service) -> float:
    """Calls that the service has begun and not ended."""
    return service.metric("grpc_server_started_total") - service.metric("grpc_server_handled_total")


async def freed(service: Service, bound: float) -> None:
    """Waits until the service has no stream any more."""
    async with asyncio.timeout(bound + 10):
        while streams_of(service):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


# --- a proxy that stops to carry ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "bound", "cuts"),
    [
        pytest.param(SOON, 1.5, 5, id="short"),
        pytest.param((), 40.0, 1, id="as it comes", marks=pytest.mark.slow),
    ],
)
async def test_a_service_frees_the_streams_of_a_line_that_was_cut(
    start: Start, flags: tuple[str, ...], bound: float, cuts: int
) -> None:
    """Streams with a megabyte on its way, and silent ones; the callers have noticed long before."""
    service = start(*flags, models=(echo,))
    sizes = []
    async with line_to(service.address) as line:
        for _ in range(cuts):
            told: Counter[str] = Counter()
            async with asyncio.TaskGroup() as tasks, clients_of(line.address) as clients:
                for client in clients:
                    for questions in (1, sys.maxsize):
                        tasks.create_task(
                            converse(
                                client,
                                lambda event, told=told: told.update([event]),  # type: ignore[misc]
                                columns=MEGABYTE_OF_COLUMNS,
                                questions=questions,
                            )
                        )
                everybody = 2 * len(clients)
                async with asyncio.timeout(30):
                    while told[ANSWERED] < everybody:  # noqa: ASYNC110
                        await asyncio.sleep(0.02)
                assert streams_of(service) == everybody
                await line.cut()
                async with asyncio.timeout(30):
                    while told.total() < 2 * everybody:  # noqa: ASYNC110
                        await asyncio.sleep(0.02)
                assert told == {ANSWERED: everybody, "Unavailable": everybody}
                await freed(service, bound)
            sizes.append(service.rss_bytes)
            line.mend()
        print("resident after each cut:", *(f"{size >> 20} MB" for size in sizes))
        assert sizes[-1] - sizes[0] < 32 * MIB
        async with AsyncInferenceClient(line.address) as client:
            assert await client.model_ready("echo")


@asynccontextmanager
async def clients_of(address: str) -> AsyncIterator[list[AsyncInferenceClient]]:
    """Clients with a connection each."""
    connection = Connection(address=address, **SHORT)
    channels = [
        open_channel(connection, options=[("grpc.use_local_subchannel_pool", 1)])
        for _ in range(CLIENTS)
    ]
    yield [AsyncInferenceClient(connection, channel=channel) for channel in channels]
    for channel in channels:
        await channel.close()


# --- a network that loses its link ----------------------------------------------------------------


@dataclass(frozen=True)
class Network:
    """A network with this machine at one end, and a caller of another machine at the other."""

    namespace: str
    here: str
    """Address of this machine on it."""
    there: str
    """Name of the caller's interface."""

    def set_link(self, state: str) -> None:
        ip("-n", self.namespace, "link", "set", self.there, state)


def ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


@pytest.fixture
def network() -> Iterator[Network]:
    """A network of two; skips where the kernel gives none to this process."""
    if shutil.which("ip") is None:
        pytest.skip("iproute2 is not installed")
    # From the block for measurements between networks; processes of one machine get their own.
    number = os.getpid() % (1 << 15)
    block = f"198.{18 + (number >> 14)}.{(number >> 6) & 255}"
    first = 4 * (number & 63)
    made = Network(f"far-{number}", f"{block}.{first + 1}", f"far-{number}b")
    near = f"far-{number}a"
    try:
        ip("netns", "add", made.namespace)
    except OSError as error:
        pytest.skip(f"no network namespaces: {error}")
    try:
        try:
            ip("link", "add", near, "type", "veth",
               "peer", "name", made.there, "netns", made.namespace)  # fmt: skip
        except OSError as error:
            pytest.skip(f"no pairs of interfaces: {error}")
        ip("addr", "add", f"{made.here}/30", "dev", near)
        ip("link", "set", near, "up")
        ip("-n", made.namespace, "addr", "add", f"{block}.{first + 2}/30", "dev", made.there)
        made.set_link("up")
        yield made
    finally:
        # The pair goes with it.
        ip("netns", "del", made.namespace)


async def test_a_service_frees_the_streams_of_a_peer_that_lost_its_link(
    start: Start, network: Network
) -> None:
    service = start(*SOON, "--grpc-address", f"{network.here}:0", "--insecure", models=(echo,))
    caller = await asyncio.create_subprocess_exec(
        "ip", "netns", "exec", network.namespace,
        sys.executable, "-m", "tests.faults.conversation", service.address,
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert caller.stdout is not None
    try:
        async with asyncio.timeout(60):
            assert (await caller.stdout.readline()).decode().strip() == ANSWERED
            assert streams_of(service) == 1
            network.set_link("down")
            assert (await caller.stdout.readline()).decode().strip() == "Unavailable"
            await freed(service, 1.5)
            network.set_link("up")
            # The same caller comes back on its own.
            while (await caller.stdout.readline()).decode().strip() != ANSWERED:
                pass
            assert streams_of(service) == 1
    finally:
        caller.kill()
        await caller.wait()
