"""Where the services are and who is calling, for one run of a command."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from modelrail.client.channel import Connection
from modelrail.client.inference import AsyncInferenceClient
from modelrail.client.registry import AsyncRegistryClient
from modelrail.client.trainer import AsyncTrainerClient

HABIT_ADDRESSES: Mapping[str, str] = {
    "registry": "127.0.0.1:8011",
    "trainer": "127.0.0.1:8021",
    "inference": "127.0.0.1:8001",
}
"""Where each service listens unless somebody says otherwise."""


DEFAULT_DATA_DIR = Path(".modelrail")


class UsageError(Exception):
    """The command line asks for something that cannot be meant; exit status 2."""


def run_directory(data_dir: Path) -> Path:
    """Returns the folder with the address files of running services."""
    return data_dir / "run"


def address_file(data_dir: Path, service: str) -> Path:
    """Returns the file in which a running service names its addresses."""
    return run_directory(data_dir) / f"{service}.json"


def running_addresses(file: Path) -> dict[str, str] | None:
    """Reads an address file; None when it is missing, or left by a process that is gone."""
    try:
        content = {name: str(value) for name, value in json.loads(file.read_text()).items()}
        pid = int(content["pid"])
    except (OSError, ValueError, KeyError, AttributeError):
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass  # Alive, and somebody else's.
    return content


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What the options, the environment and the data directory say about the services."""

    data_dir: Path = DEFAULT_DATA_DIR
    addresses: Mapping[str, str] = field(default_factory=dict)
    """What was given by flags, by service."""
    api_key_file: Path | None = None
    ca_certificate: Path | None = None
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ, repr=False)

    @property
    def data_dir_option(self) -> str:
        """What a command shown to the user needs to find the same services."""
        return "" if self.data_dir == DEFAULT_DATA_DIR else f" --data-dir {self.data_dir}"

    def address(self, service: str) -> str:
        """Returns where a service is: flag, then environment, then address file, then habit."""
        if given := self._given(service):
            return given
        running = running_addresses(address_file(self.data_dir, service))
        return running["grpc_address"] if running else HABIT_ADDRESSES[service]

    def is_named(self, service: str) -> bool:
        """Whether a flag or the environment says where a service is."""
        return bool(self._given(service))

    def _given(self, service: str) -> str | None:
        return self.addresses.get(service) or self.environ.get(f"MODELRAIL_{service.upper()}")

    def connection(self, service: str) -> Connection:
        """Returns how to reach a service.

        Raises:
            UsageError: The key cannot be read, or would cross a network in plain text.
        """
        try:
            key = self.api_key_file.read_text().strip() if self.api_key_file else None
            return Connection(
                address=self.address(service),
                api_key=key or None,
                ca_certificate=self.ca_certificate,
            )
        except (OSError, ValueError) as error:
            raise UsageError(str(error)) from error

    def registry(self) -> AsyncRegistryClient:
        """Returns a client of the registry; call it inside the event loop."""
        return AsyncRegistryClient(self.connection("registry"))

    def trainer(self) -> AsyncTrainerClient:
        """Returns a client of the trainer; call it inside the event loop."""
        return AsyncTrainerClient(self.connection("trainer"))

    def inference(self) -> AsyncInferenceClient:
        """Returns a client of the inference service; call it inside the event loop."""
        return AsyncInferenceClient(self.connection("inference"))
