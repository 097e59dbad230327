"""Looks into tables through the service: by real workers, and by some that misbehave."""

from __future__ import annotations

import asyncio
import csv
import json
import math
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from modelrail.cli.specification import read_specification
from modelrail.client.channel import Connection
from modelrail.client.errors import (
    FailedPrecondition,
    InvalidArgument,
    ModelrailError,
    PermissionDenied,
    ResourceExhausted,
)
from modelrail.client.trainer import AsyncTrainerClient
from modelrail.names import TrainingJobName
from modelrail.trainer.v1 import trainer_pb2 as pb
from modelrail_server.access.api_keys import new_key, write_keys
from modelrail_server.policy import Permission
from modelrail_trainer.__main__ import WORKER_COMMAND
from modelrail_trainer.execution.errands import errand
from modelrail_trainer.execution.processes.directory import JobDirectories
from tests.integration.house import (
    House,
    ScriptedRegistry,
    TrainerUnderTest,
    cli,
    processes_of,
    serving_registry,
)

# What the worker does is written in the only path of the table that it is asked about.
HOSTILE = """
import os, signal, sys, time
from pathlib import Path
from modelrail.trainer.v1 import trainer_pb2

directory = Path(sys.argv[sys.argv.index("--job-directory") + 1])
spec = trainer_pb2.TrainingJobSpec.FromString((directory / "spec.binpb").read_bytes())
result = directory / "inspection.json"
match Path(spec.dataset.table.paths[0]).stem:
    case "garbage":
        result.write_bytes(b"no JSON")
    case "huge":
        with result.open("wb") as file:
            file.truncate(1 << 30)
    case "link":
        result.symlink_to("/etc/passwd")
    case "pipe":
        os.mkfifo(result)
    case "other":
        result.write_text('{"files": [], "rows": 1, "rows_estimated": false, "rows_read": 1,'
            '"rows_sampled": 1, "columns": [], "target": null, "preview": [], "warnings": []}')
    case "nothing":
        print("the roof is on fire")
    case "wait":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        (directory / "waiting").touch()
        while True:
            signal.pause()
"""


def table(*paths: str, target: str = "kind") -> pb.Dataset:
    return pb.Dataset(table=pb.TableDataset(paths=paths, target=target))


def left(trainer: TrainerUnderTest) -> list[Path]:
    return list((trainer.data_dir / "inspections").iterdir())


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with a table, and with files that are none."""
    folder = tmp_path / "files"
    folder.mkdir()
    with (folder / "rows.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "size", "town", "kind"])
        for i in range(200):
            rows.writerow([i, (i * 7 % 31) / 10, ["Rome", "Oslo", ""][i % 3], "ab"[i % 5 // 3]])
    (folder / "empty.csv").touch()
    (folder / "head.csv").write_text("x,kind\n")
    (folder / "broken.parquet").write_bytes(b"PAR1 and no more of it")
    (folder / "folder.csv").mkdir()
    pyarrow.parquet.write_table(
        pa.table({f"c{i}": [1] for i in range(5_000)}), folder / "wide.parquet"
    )
    return folder


@pytest.fixture
async def house(tmp_path: Path) -> House:
    registry = ScriptedRegistry()  # type: ignore[abstract]  # answers what is asked here
    return House(tmp_path, registry, command=WORKER_COMMAND)


@pytest.fixture
async def trainer(house: House, data: Path) -> AsyncIterator[TrainerUnderTest]:
    async with (
        serving_registry(house.registry, house.registry_address),
        house.trainer(data_root=(str(data),)) as trainer,
    ):
        yield trainer


@pytest.fixture
def hostile(house: House) -> House:
    program = house.tmp_path / "hostile.py"
    program.write_text(HOSTILE)
    house.command = (sys.executable, str(program))
    folder = house.tmp_path / "files"
    folder.mkdir()
    for name in ("garbage", "huge", "link", "pipe", "other", "nothing", "wait"):
        (folder / f"{name}.csv").touch()
    return house


async def until(condition: object) -> None:
    async with asyncio.timeout(30):
        while not condition():  # type: ignore[operator]  # noqa: ASYNC110  # only files tell
            await asyncio.sleep(0.01)


# Real workers


async def test_a_table_is_told_and_what_is_suggested_trains(trainer: TrainerUnderTest) -> None:
    found = await trainer.client.inspect_dataset(table("rows.csv"), rows=2)
    assert [(file.path, file.format) for file in found.files] == [("rows.csv", "csv")]
    assert (found.rows, found.rows_estimated, found.rows_sampled) == (200, False, 200)
    used = {one.name: one.use for one in found.columns}
    column = pb.InspectedColumn
    assert used == {
        "id": column.USE_UNSPECIFIED,
        "size": column.USE_NUMBER,
        "town": column.USE_CATEGORY,
        "kind": column.USE_TARGET,
    }
    assert found.columns[2].missing == 66
    assert [cell.missing for cell in found.preview[0].cells] == [False] * 4
    assert [cell.text for cell in found.preview[1].cells] == ["1", "0.7", "Oslo", "a"]
    assert [(one.text, one.count) for one in found.target.classes] == [("a", 120), ("b", 80)]
    assert left(trainer) == []
    assert [job async for job in trainer.client.list_jobs()] == []
    await trainer.client.with_timeout(120).create_job(
        found.suggested_spec, dry_run=True, validate_only=True
    )


@pytest.mark.parametrize(
    ("dataset", "error", "field", "expected"),
    [
        (table("absent.csv"), InvalidArgument, "dataset.table.paths[0]", "expected a file below"),
        (table("/etc/hosts.csv"), InvalidArgument, "dataset.table.paths[0]", "expected a file"),
        (table("../x.csv"), InvalidArgument, "dataset.table.paths[0]", "without `..`"),
        (table("folder.csv"), InvalidArgument, "dataset.table.paths[0]", "expected a file"),
        (table("rows.txt"), InvalidArgument, "dataset.table.paths", "one of the endings"),
        (table(), InvalidArgument, "dataset.table.paths", "from 1 to"),
        (pb.Dataset(bundled="digits"), InvalidArgument, "dataset", "expected a table, got bundled"),
        (pb.Dataset(), InvalidArgument, "dataset", "expected a table, got none"),
        (table("empty.csv"), FailedPrecondition, "dataset.table.paths[0]", "Empty CSV file"),
        (table("head.csv"), FailedPrecondition, "dataset.table.paths", "no rows"),
        (table("broken.parquet"), FailedPrecondition, "dataset.table.paths[0]", "broken.parquet"),
        (table("wide.parquet"), FailedPrecondition, "dataset.table.paths", "at most 4096"),
        (table("rows.csv", target="absent"), FailedPrecondition, "dataset.table.target", "absent"),
    ],
)  # fmt: skip
async def test_what_cannot_be_inspected_is_named_by_its_field(
    dataset: pb.Dataset,
    error: type[ModelrailError],
    field: str,
    expected: str,
    trainer: TrainerUnderTest,
) -> None:
    with pytest.raises(error, match=expected.replace("[", r"\[")) as raised:
        await trainer.client.inspect_dataset(dataset)
    assert [one.field for one in raised.value.violations] == [field]
    assert str(trainer.data_dir.parent) not in str(raised.value)
    assert left(trainer) == []


@pytest.mark.parametrize(
    ("split", "field", "expected"),
    [
        (pb.Split(validation_fraction=1.5), "split.validation_fraction", "got 1.5"),
        (pb.Split(test_fraction=-0.1), "split.test_fraction", "above 0 and below 1, got -0.1"),
        (pb.Split(test_fraction=math.nan), "split.test_fraction", "got nan"),
        (pb.Split(validation_fraction=0.5, test_fraction=0.5), "split", "below 1"),
        (pb.Split(seed=-1), "split.seed", "at least 0, got -1"),
    ],
)
async def test_the_numbers_of_a_split_are_checked_as_those_of_a_job_are(
    split: pb.Split, field: str, expected: str, trainer: TrainerUnderTest
) -> None:
    with pytest.raises(InvalidArgument, match=re.escape(expected)) as raised:
        await trainer.client.inspect_dataset(table("rows.csv"), split=split)
    assert [one.field for one in raised.value.violations] == [field]


async def test_a_fraction_beside_what_settles_it_is_not_checked_twice(
    trainer: TrainerUnderTest,
) -> None:
    split = pb.Split(column="town", validation_fraction=1.5)
    with pytest.raises(InvalidArgument) as raised:
        await trainer.client.inspect_dataset(table("rows.csv"), split=split)
    (violation,) = raised.value.violations
    assert "expected no fraction beside split.column" in violation.description


async def test_a_file_of_the_split_that_vanishes_meanwhile_is_told_by_its_field(
    trainer: TrainerUnderTest, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (data / "late.csv").write_text((data / "rows.csv").read_text())
    prepare = JobDirectories.prepare

    def vanished(self: JobDirectories, name: TrainingJobName, specification: bytes) -> Path:
        (data / "late.csv").unlink()  # after the service looked, before the process does
        return prepare(self, name, specification)

    monkeypatch.setattr(JobDirectories, "prepare", vanished)
    split = pb.Split(test_paths=["late.csv"])
    with pytest.raises(FailedPrecondition, match="expected a file below a --data-root") as raised:
        await trainer.client.inspect_dataset(table("rows.csv"), split=split)
    assert [one.field for one in raised.value.violations] == ["split.test_paths[0]"]


@pytest.mark.parametrize("rows", [-1, 101])
async def test_rows_to_show_have_a_bound(rows: int, trainer: TrainerUnderTest) -> None:
    with pytest.raises(InvalidArgument, match="rows: expected from 0 to 100 rows"):
        await trainer.client.inspect_dataset(table("rows.csv"), rows=rows)


async def test_fractions_of_a_split_have_bounds(trainer: TrainerUnderTest) -> None:
    with pytest.raises(InvalidArgument, match=r"split\.test_fraction: expected a fraction above 0"):
        await trainer.client.inspect_dataset(table("rows.csv"), split=pb.Split(test_fraction=1.5))


async def test_who_may_only_read_sees_no_rows(house: House, data: Path) -> None:
    keys = {p: new_key(p.name.lower(), [Permission.READ, p]) for p in Permission if p.name in
            ("READ", "WRITE")}  # fmt: skip
    file = house.tmp_path / "keys.json"
    write_keys(file, [record for _, record in keys.values()])
    async with house.trainer(api_keys_file=file, data_root=(str(data),)):  # type: ignore[arg-type]
        reader, writer = (
            AsyncTrainerClient(
                Connection(address=f"unix:{house.tmp_path}/t.sock", api_key=keys[permission][0])
            )
            for permission in (Permission.READ, Permission.WRITE)
        )
        async with reader, writer:
            with pytest.raises(PermissionDenied):
                await reader.inspect_dataset(table("rows.csv"))
            assert (await writer.inspect_dataset(table("rows.csv"))).rows == 200


# Workers that misbehave


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("garbage", "what it left is damaged"),
        ("huge", "what it left is damaged: it is larger than"),
        ("link", "what it left is damaged: it is no file"),
        ("pipe", "what it left is damaged"),
        ("other", "what it left is damaged: it is about other files"),
        ("nothing", "the roof is on fire"),
    ],
)
async def test_what_no_inspection_leaves_is_not_believed(
    name: str, expected: str, hostile: House
) -> None:
    async with hostile.trainer(data_root=(str(hostile.tmp_path / "files"),)) as trainer:
        with pytest.raises(FailedPrecondition, match=expected) as raised:
            await trainer.client.inspect_dataset(table(f"{name}.csv"))
        assert raised.value.reason == "INSPECTION_FAILED"
        assert left(trainer) == []


async def test_an_inspection_that_takes_too_long_is_stopped_and_says_so(hostile: House) -> None:
    roots = (str(hostile.tmp_path / "files"),)
    async with hostile.trainer(data_root=roots, inspection_seconds=1) as trainer:
        with pytest.raises(FailedPrecondition, match="no result after 1 s") as raised:
            await trainer.client.inspect_dataset(table("wait.csv"))
        assert raised.value.metadata["failure"] == "TIMEOUT"
        assert processes_of(trainer) == []
        assert left(trainer) == []


async def test_a_client_that_gives_up_ends_its_inspection_and_frees_the_place(
    hostile: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(errand, "MAX_WAITING", 0)
    async with hostile.trainer(data_root=(str(hostile.tmp_path / "files"),)) as trainer:
        call = asyncio.create_task(trainer.client.inspect_dataset(table("wait.csv")))
        await until(lambda: any((folder / "waiting").exists() for folder in left(trainer)))
        with pytest.raises(ResourceExhausted, match="inspection is under way and 0 wait") as raised:
            await trainer.client.inspect_dataset(table("wait.csv"))
        assert raised.value.reason == "TOO_MANY_INSPECTIONS"
        call.cancel()
        await until(lambda: not processes_of(trainer) and not left(trainer))
        with pytest.raises(FailedPrecondition, match="the roof is on fire"):
            await trainer.client.inspect_dataset(table("nothing.csv"))


# The command line


async def test_the_command_line_shows_a_table_and_writes_a_specification(
    house: House, trainer: TrainerUnderTest
) -> None:
    file = house.tmp_path / "spec.yaml"
    arguments = ("data", "inspect", "rows.csv", "--target", "kind")
    status, output = await cli(house, *arguments, "--rows", "2", "--write-spec", str(file))
    assert status == 0, output
    for expected in ("200 rows, 4 columns", "target kind: 2 classes", "it names rows", "Oslo"):
        assert expected in output
    assert f"modelrail train {file}" in output
    spec = read_specification(file)
    assert await trainer.client.create_job(spec, validate_only=True)
    status, output = await cli(house, *arguments, "--write-spec", str(file))
    assert (status, "is there already" in output) == (1, True), output
    status, output = await cli(house, *arguments, "--json")
    assert json.loads(output)["rows"] == "200"


async def test_texts_of_a_file_do_not_steer_the_terminal(
    house: House, trainer: TrainerUnderTest, data: Path
) -> None:
    (data / "odd.csv").write_text("x[red],kind\n" + "\x1b[2Jgone,a\n[bold]x,b\n" * 10)
    status, output = await cli(house, "data", "inspect", "odd.csv", "--target", "kind")
    assert status == 0, output
    assert "\x1b[2J" not in output
    assert "[bold]x" in output
    assert "x[red]" in output
