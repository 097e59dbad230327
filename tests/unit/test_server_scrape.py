"""Scrapes of the metrics while others hold the connections: slow ones give way."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from modelrail_server.address import Address
from modelrail_server.observability import scrape
from modelrail_server.observability.scrape import MetricsServer

SECONDS = 10.0
PLACES = 8
REQUEST = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"


class Gated(Collector):
    """A metric that can be kept back."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.looks = threading.Semaphore(0)

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        self.looks.release()
        assert self.gate.wait(SECONDS)
        return [GaugeMetricFamily("here", "Here", value=1)]


class Scraped:
    """A server of metrics, and connections with it."""

    def __init__(self, stack: ExitStack) -> None:
        self.metric, registry = Gated(), CollectorRegistry()
        registry.register(self.metric)
        self._server = MetricsServer(Address.parse("127.0.0.1:0"), registry)
        self._stack = stack
        stack.callback(self._server.close)

    def connect(self, sent: bytes = b"") -> socket.socket:
        where = (self._server.address.host, self._server.address.port)
        connection = self._stack.enter_context(socket.create_connection(where, timeout=SECONDS))
        connection.sendall(sent)
        return connection


@pytest.fixture
def scraped() -> Iterator[Scraped]:
    with ExitStack() as stack:
        yield Scraped(stack)


def answer_of(connection: socket.socket) -> bytes:
    """What comes until the server closes the connection."""
    found = b""
    try:
        while part := connection.recv(65536):
            found += part
    except ConnectionError:
        pass
    return found


def is_answered(connection: socket.socket) -> bool:
    return b"\nhere 1.0\n" in answer_of(connection)


def test_a_scrape_is_answered_while_silent_ones_hold_every_place(scraped: Scraped) -> None:
    slow = [scraped.connect(b"GET /met") for _ in range(PLACES)]
    assert is_answered(scraped.connect(REQUEST))
    assert answer_of(slow[0]) == b""
    # Those that were not in the way may still ask.
    slow[-1].sendall(REQUEST.removeprefix(b"GET /met"))
    assert is_answered(slow[-1])


def test_scrapes_are_answered_while_as_many_come_and_say_nothing(scraped: Scraped) -> None:
    for _ in range(3):
        for _ in range(PLACES):
            scraped.connect(b"GET /met")
        assert is_answered(scraped.connect(REQUEST))


def test_a_scrape_that_is_answered_gives_way_to_nobody(scraped: Scraped) -> None:
    scraped.metric.gate.clear()
    asked = [scraped.connect(REQUEST) for _ in range(PLACES)]
    for _ in asked:
        assert scraped.metric.looks.acquire(timeout=SECONDS)
    assert answer_of(scraped.connect(REQUEST)) == b""
    scraped.metric.gate.set()
    assert all(map(is_answered, asked))
    assert is_answered(scraped.connect(REQUEST))


def test_a_request_must_come_in_time_however_often_a_byte_of_it_comes(
    scraped: Scraped, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scrape, "_TIMEOUT_SECONDS", 0.5)
    slow = scraped.connect(b"GET /metrics HTTP/1.1\r\nA: ")
    slow.settimeout(0.05)
    closed, end = False, time.monotonic() + SECONDS
    while not closed and time.monotonic() < end:
        try:
            slow.sendall(b"a")
            closed = slow.recv(1) == b""
        except TimeoutError:
            pass
        except ConnectionError:
            closed = True
    assert closed
