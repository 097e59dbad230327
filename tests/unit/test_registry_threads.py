"""Threads that run before there is work for them."""

from __future__ import annotations

import threading

import pytest

from modelrail_registry.threads import started_threads


def test_all_threads_run_before_the_first_work() -> None:
    with started_threads(3, "early"):
        names = [thread.name for thread in threading.enumerate()]
        assert sum(name.startswith("early") for name in names) == 3


def test_a_limit_of_threads_ends_the_start_and_leaves_none_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start = threading.Thread.start
    started: list[threading.Thread] = []

    def failing_start(self: threading.Thread) -> None:
        if len(started) == 2:
            raise RuntimeError("can't start new thread")
        started.append(self)
        start(self)

    monkeypatch.setattr(threading.Thread, "start", failing_start)
    with pytest.raises(RuntimeError, match="3 threads for the disk"):
        started_threads(3, "disk")
    assert [thread.is_alive() for thread in started] == [False, False]
