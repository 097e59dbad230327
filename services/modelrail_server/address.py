"""Addresses that a server listens on."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Self

__all__ = ["Address", "BindError"]

_HOST_PORT = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%]+\]|[^\s:/\[\]]+):(?P<port>[0-9]{1,5})")


class BindError(OSError):
    """An address cannot be listened on: it is taken, or is not one of this machine."""


@dataclass(frozen=True, slots=True)
class Address:
    """`HOST:PORT` (port 0 = a free one) or `unix:PATH`."""

    host: str
    """Host name or IP address without brackets; empty for a unix socket."""
    port: int
    path: str
    """Path of a unix socket; empty otherwise."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads an address.

        Raises:
            ValueError: The text is neither `HOST:PORT` nor `unix:PATH`.
        """
        scheme, separator, path = text.partition(":")
        if scheme == "unix" and separator and path.removeprefix("//"):
            return cls("", 0, path.removeprefix("//"))
        match = _HOST_PORT.fullmatch(text)
        if match is None or int(match["port"]) > 65535:
            raise ValueError(f"expected HOST:PORT or unix:PATH, got {text!r}")
        return cls(match["host"].strip("[]"), int(match["port"]), "")

    @property
    def is_local(self) -> bool:
        """Whether only processes of this machine can connect: loopback and unix sockets."""
        if self.path or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def with_port(self, port: int) -> Address:
        """Returns the same address with the port that was really bound."""
        return self if self.path else Address(self.host, port, "")

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
