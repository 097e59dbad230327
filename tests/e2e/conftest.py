"""What the tests of whole commands share."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from pathlib import PurePath

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

_AT_THE_USUAL_ADDRESSES = ("test_readme.py", "test_imports.py", "test_cli_demo.py")


class _AddressesOnce(LoadFileScheduling):
    """Gives a worker the tests of a file, or of all files that want the usual addresses.

    Otherwise those would wait for each other, and a worker with them.
    """

    def _split_scope(self, nodeid: str) -> str:
        scope = super()._split_scope(nodeid)
        return "usual addresses" if PurePath(scope).name in _AT_THE_USUAL_ADDRESSES else scope


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> _AddressesOnce | None:
    """Schedules whole files, where the command asks for that."""
    return _AddressesOnce(config, log) if config.getoption("dist") == "loadfile" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Has the files run first that take as long as all others together."""
    items.sort(key=lambda item: item.path.name not in _AT_THE_USUAL_ADDRESSES)


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
