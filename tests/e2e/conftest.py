"""What the tests of whole commands share."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Has the longest file run first, long before the others that want the usual addresses too.

    They would wait for each other, and a worker with them.
    """
    items.sort(key=lambda item: item.path.name != "test_readme.py")


@pytest.fixture(scope="module")
def usual_addresses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The addresses where a command looks for services unasked, for one file of tests at a time.

    A command that finds a trainer there gives it the job, and does not start services of its own.
    """
    # The workers of a run have folders of their own below one.
    place = tmp_path_factory.getbasetemp().parent / "usual-addresses.lock"
    with place.open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
