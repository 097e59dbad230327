"""The inference service as a process of its own: what a test may do to it and see of it."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import psutil

from modelrail.oip.v2 import grpc_service_pb2 as pb
from modelrail.oip.v2.grpc_service_pb2_grpc import GRPCInferenceServiceStub

MIB = 1 << 20
SECONDS = 30.0
"""Longest wait of a test for anything; no figure of speed."""

Maker = Callable[[Path], None]


class Service:
    """A running service over a folder of models.

    Args:
        folder: Where its models, its log and its address are.
        models: What writes the models, each under the name of its function.
        arguments: More flags.
        wrapper: A command that runs the service, as `prlimit` does.
        credentials: How to reach it, where it has TLS.
    """

    def __init__(
        self,
        folder: Path,
        models: Sequence[Maker],
        arguments: Sequence[str],
        *,
        wrapper: Sequence[str] = (),
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        self.models = folder / "models"
        self.models.mkdir(parents=True, exist_ok=True)
        for make in models:
            if not (self.models / make.__name__).exists():
                make(self.models / make.__name__)
        self.log = folder / "log"
        self._credentials = credentials
        file = folder / "address.json"
        file.unlink(missing_ok=True)
        command = [
            *wrapper, sys.executable, "-m", "modelrail_inference",
            "--model-repository", str(self.models), "--data-dir", str(folder / "data"),
            "--provider", "cpu", "--metrics-address", "127.0.0.1:0",
            "--address-file", str(file), *arguments,
        ]  # fmt: skip
        if "--grpc-address" not in arguments:
            command += ["--grpc-address", "127.0.0.1:0"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            self._addresses = self._await_addresses(file)
            self._await_ready()
        except BaseException:
            self.close()
            raise
        self._seen = psutil.Process(self.process.pid)

    @property
    def address(self) -> str:
        """Address of gRPC."""
        return str(self._addresses["grpc_address"])

    @property
    def rss_bytes(self) -> int:
        """Resident memory now."""
        return int(self._seen.memory_info().rss)

    @property
    def peak_bytes(self) -> int:
        """Most resident memory ever."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) << 10

    def metric(self, sample: str, **labels: str) -> float:
        """Returns the sum of the samples of one metric over all labels but those given."""
        url = f"http://{self._addresses['metrics_address']}/metrics"
        with urllib.request.urlopen(url, timeout=SECONDS) as answer:
            lines = answer.read().decode().splitlines()
        return sum(
            float(line.rpartition(" ")[2])
            for line in lines
            if line.startswith((f"{sample}{{", f"{sample} "))
            and all(f'{name}="{value}"' in line for name, value in labels.items())
        )

    def channel(self, **options: Any) -> Any:
        """Opens a connection of its own, for callers without an event loop."""
        given = [("grpc.use_local_subchannel_pool", 1), *options.items()]
        if self._credentials is not None:
            return grpc.secure_channel(self.address, self._credentials, options=given)
        return grpc.insecure_channel(self.address, options=given)

    def aio_channel(self, **options: Any) -> grpc.aio.Channel:
        """Opens a connection of its own."""
        given = [("grpc.use_local_subchannel_pool", 1), *options.items()]
        if self._credentials is not None:
            return grpc.aio.secure_channel(self.address, self._credentials, options=given)
        return grpc.aio.insecure_channel(self.address, options=given)

    def stop(self) -> int:
        """Tells the process to end, as a cluster does; returns its status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def close(self) -> None:
        """Ends the process now, if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def _await_addresses(self, file: Path) -> dict[str, Any]:
        end = time.monotonic() + 60
        while True:
            if file.exists():
                addresses: dict[str, Any] = json.loads(file.read_text())
                return addresses
            if self.process.poll() is not None or time.monotonic() > end:
                raise AssertionError(f"the service did not start: {self.log.read_text()[-2000:]}")
            time.sleep(0.02)

    def _await_ready(self) -> None:
        with self.channel() as channel:
            stub: Any = GRPCInferenceServiceStub(channel)
            end = time.monotonic() + 60
            while not stub.ServerReady(
                pb.ServerReadyRequest(), timeout=SECONDS, wait_for_ready=True
            ).ready:
                if time.monotonic() > end:
                    raise AssertionError(f"not ready: {self.log.read_text()[-2000:]}")
                time.sleep(0.02)


async def eventually(holds: Callable[[], bool]) -> None:
    """Waits until something holds that nobody tells of."""
    async with asyncio.timeout(SECONDS):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.02)
