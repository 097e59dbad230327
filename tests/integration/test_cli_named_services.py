"""Commands that start services of their own, when a service was named that does not answer."""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from modelrail.cli.command import Failure
from modelrail.cli.commands import data, train
from modelrail.cli.session import Session, address_file

SPECIFICATION = "examples/linear.yaml"


class Started(Exception):
    """The command went on to start services."""


@pytest.fixture
def table(tmp_path: Path) -> str:
    path = tmp_path / "table.csv"
    path.write_text("x,y\n1,2\n")
    return str(path)


@pytest.fixture(autouse=True)
def no_services(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(plan: object) -> None:
        raise Started(plan)

    for module in (train, data):
        monkeypatch.setattr(module, "running_stack", start)
        monkeypatch.setattr(module, "note", lambda _: None)


def session(tmp_path: Path, service: str = "", *, named_by: str = "") -> Session:
    """Returns a session in which no service runs, and one is named by a flag or a variable."""
    nowhere = f"unix:{tmp_path / 'nowhere'}"
    # Where the command looks when nothing is named: there may be a trainer at the habitual address.
    file = address_file(tmp_path, "trainer")
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({"pid": os.getpid(), "grpc_address": nowhere}))
    return Session(
        data_dir=tmp_path,
        addresses={service: nowhere} if named_by == "flag" else {},
        environ={f"MODELRAIL_{service.upper()}": nowhere} if named_by == "variable" else {},
    )


Command = Callable[[Session, str], Awaitable[None]]


async def train_example(session: Session, table: str) -> None:
    del table
    await train.train(session, Path(SPECIFICATION))


async def inspect_table(session: Session, table: str) -> None:
    await data.inspect(session, [table])


@pytest.mark.parametrize(("command", "purpose"), [(train_example, "job"), (inspect_table, "look")])
@pytest.mark.parametrize("named_by", ["flag", "variable"])
async def test_a_named_trainer_that_does_not_answer_is_not_replaced(
    named_by: str, command: Command, purpose: str, tmp_path: Path, table: str
) -> None:
    with pytest.raises(Failure) as refused:
        await command(session(tmp_path, "trainer", named_by=named_by), table)
    assert str(refused.value) == (
        f"no trainer answers at unix:{tmp_path / 'nowhere'}: start it, or leave"
        f" --trainer/MODELRAIL_TRAINER out to have the services started for this {purpose}"
    )


@pytest.mark.parametrize("named_by", ["flag", "variable"])
async def test_training_does_not_replace_a_named_inference_service(
    named_by: str, tmp_path: Path, table: str
) -> None:
    with pytest.raises(Failure, match="leave --inference/MODELRAIL_INFERENCE out"):
        await train_example(session(tmp_path, "inference", named_by=named_by), table)


async def test_a_detached_job_needs_a_trainer_that_stays(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="start it, or leave --detach out"):
        await train.train(session(tmp_path), Path(SPECIFICATION), detach=True)


@pytest.mark.parametrize("command", [train_example, inspect_table])
async def test_without_a_name_the_services_are_started(
    command: Command, tmp_path: Path, table: str
) -> None:
    with pytest.raises(Started):
        await command(session(tmp_path), table)
