"""Jobs whose rows are divided by a column, by groups or by files, by real worker processes."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from modelrail.cli.specification import read_specification
from modelrail.client.errors import FailedPrecondition, InvalidArgument
from modelrail.client.trainer import RunPolicy
from modelrail.trainer.v1 import trainer_pb2 as pb
from modelrail_trainer.__main__ import WORKER_COMMAND
from modelrail_trainer.handover.data_summary import DataSummary
from modelrail_trainer.handover.journal import DataEvent, FailureReason, read_events
from modelrail_trainer.worker.job import DRY_RUN_ROWS
from tests.integration.house import House, ScriptedRegistry, TrainerUnderTest, cli, serving_registry
from tests.integration.worker_jobs import failure_of, said, succeeded

FAR = 1e6
"""What no training row holds."""
Row = tuple[object, ...]


def write(path: Path, head: Sequence[str], rows: Sequence[Row]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        writer.writerows(rows)


def training_rows(count: int) -> list[Row]:
    """Two classes, told by the sign of a number around 0 that is missing now and then."""
    sizes = np.random.default_rng(0).normal(size=count)
    return [
        ("" if place % 11 == 0 else size, "small" if size < 0 else "big")
        for place, size in enumerate(sizes.tolist())
    ]


def far_rows(count: int) -> list[Row]:
    return [(FAR if place % 2 else -3 * FAR, "big" if place % 2 else "small")
            for place in range(count)]  # fmt: skip


def job(*paths: str, **split: object) -> pb.TrainingJobSpec:
    return pb.TrainingJobSpec(
        dataset=pb.Dataset(table=pb.TableDataset(paths=paths, target="kind")),
        split=pb.Split(**split),  # type: ignore[arg-type]
        model=pb.ModelSpec(mlp=pb.MlpModel(hidden_units=[4])),
        loss=pb.Loss(cross_entropy=pb.CrossEntropy()),
        optimizer=pb.Optimizer(adam=pb.Adam(learning_rate=0.05)),
        epochs=3,
        publication=pb.Publication(model="kinds"),
    )


def summary_of(directory: Path) -> DataSummary:
    events = read_events(directory / "events.jsonl", 0)[0]
    (found,) = [event.summary for event in events if isinstance(event, DataEvent)]
    return found


def parts_of(directory: Path) -> dict[str, int]:
    return {part.split: part.rows for part in summary_of(directory).parts}


def check_only_training_rows_were_fitted(directory: Path) -> None:
    """Whatever stands in for a missing number and scales it knows nothing of the far rows."""
    (column,) = summary_of(directory).columns
    assert column.name == "size"
    assert all(abs(value) < 3 for value in column.figures.values()), column.figures
    # The published graph says the same: a missing number is one near 0, not a far one.
    session = onnxruntime.InferenceSession(directory / "model.onnx")

    def probabilities(size: float) -> np.ndarray:
        sizes = np.array([[size]], np.float32)
        found: np.ndarray = session.run(["probabilities"], {"size": sizes})[0]
        return found

    fill = column.figures["fill"]
    np.testing.assert_allclose(probabilities(float("nan")), probabilities(fill), atol=1e-6)


def test_a_column_says_the_parts_and_test_rows_teach_nothing(tmp_path: Path) -> None:
    rows = [(*row, "train") for row in training_rows(300)]
    rows[100:100] = [(*row, "validation") for row in far_rows(40)]
    rows += [(*row, "test") for row in far_rows(60)]
    write(tmp_path / "rows.csv", ["size", "kind", "part"], rows)
    directory, result = succeeded(job("rows.csv", column="part"), tmp_path)
    assert parts_of(directory) == {"train": 300, "validation": 40, "test": 60}
    check_only_training_rows_were_fitted(directory)
    assert [tensor.name for tensor in result.signature.inputs] == ["size"]


def test_a_value_that_names_no_part_fails_the_job_and_says_where(tmp_path: Path) -> None:
    rows = [(*row, ("train", "validation", "test")[n % 3]) for n, row in
            enumerate(training_rows(90))]  # fmt: skip
    rows[50] = (*rows[50][:2], "Train")
    write(tmp_path / "rows.csv", ["size", "kind", "part"], rows)
    failure = failure_of(job("rows.csv", column="part"), tmp_path)
    assert failure.reason is FailureReason.DATA
    assert failure.message == (
        "1 rows cannot be used, the first of them row 50, counted from 0 over all files: column "
        "'part' holds none of train, validation, test; got 'Train'; mend them, or set "
        "dataset.table.skip_unusable_rows"
    )


def test_files_are_the_parts_and_test_rows_teach_nothing(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", ["size", "kind"], training_rows(300))
    write(tmp_path / "v.csv", ["kind", "size"], [row[::-1] for row in far_rows(40)])
    write(tmp_path / "t.csv", ["size", "kind"], far_rows(60))
    spec = job("a.csv", validation_paths=["v.csv"], test_paths=["t.csv"])
    directory, result = succeeded(spec, tmp_path)
    assert parts_of(directory) == {"train": 300, "validation": 40, "test": 60}
    check_only_training_rows_were_fitted(directory)
    assert result.lineage.dataset == "table of 3 files, target kind"
    digest = result.lineage.dataset_sha256
    # Another test row is another data set: it is in the lineage, and no checkpoint fits any more.
    write(tmp_path / "t.csv", ["size", "kind"], far_rows(61))
    again = tmp_path / "again"
    again.mkdir()
    for name in ("a.csv", "v.csv", "t.csv"):
        shutil.copy(tmp_path / name, again)
    assert succeeded(spec, again)[1].lineage.dataset_sha256 != digest


@pytest.mark.slow
def test_a_checkpoint_of_other_test_rows_is_not_gone_on_from(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", ["size", "kind"], training_rows(300))
    write(tmp_path / "t.csv", ["size", "kind"], far_rows(60))
    spec = job("a.csv", test_paths=["t.csv"])
    spec.checkpoint_every_steps = 2
    directory, _ = succeeded(spec, tmp_path)
    again = tmp_path / "again"
    command = [sys.executable, "-m", "modelrail_trainer.worker", f"--data-root={tmp_path}"]

    def lines_of_another_run() -> list[str]:
        shutil.rmtree(again, ignore_errors=True)
        again.mkdir()
        shutil.copytree(directory / "checkpoints", again / "checkpoints")
        shutil.copy(directory / "spec.binpb", again)
        subprocess.run([*command, "--job-directory", str(again)], check=True, capture_output=True)
        return [line for line in said(again) if line.startswith("goes on from the checkpoint")]

    assert len(lines_of_another_run()) == 1
    write(tmp_path / "t.csv", ["size", "kind"], far_rows(61))
    assert lines_of_another_run() == []


def test_rows_of_a_group_are_in_one_part_of_the_job(tmp_path: Path) -> None:
    # Each person has a size of their own, which tells who it is.
    rows = [(person, person // 2 - 50, "ab"[person % 2]) for person in range(100)] * 6
    write(tmp_path / "rows.csv", ["person", "size", "kind"], rows)
    spec = job("rows.csv", group_column="person", seed=1)
    directory, result = succeeded(spec, tmp_path)
    assert [tensor.name for tensor in result.signature.inputs] == ["size"]
    sizes = parts_of(directory)
    assert all(count and count % 6 == 0 for count in sizes.values())
    # Others can have the very parts.
    found: dict[str, set[tuple[float, ...]]] = {}
    for part in sizes:
        output = tmp_path / f"{part}.npz"
        subprocess.run(
            [sys.executable, "-m", "modelrail_trainer.worker.rows", f"--output={output}",
             f"--specification={directory / 'spec.binpb'}", f"--split={part}",
             f"--data-root={tmp_path}"],
            check=True,
        )  # fmt: skip
        persons = np.load(output)
        assert len(persons["inputs"]) == sizes[part]
        pairs = np.column_stack([persons["inputs"][:, 0], persons["targets"]])
        found[part] = {tuple(pair) for pair in pairs.tolist()}
    assert sum(map(len, found.values())) == len(set.union(*found.values())) == 100


def test_lines_are_divided_by_files(tmp_path: Path) -> None:
    for name, words, count in (("a", b"to be or not ", 400), ("v", b"to be ", 100)):
        (tmp_path / f"{name}.txt").write_bytes(words * count)
    spec = job()
    spec.dataset.lines.paths.append("a.txt")
    spec.dataset.lines.context_length = 8
    spec.split.CopyFrom(pb.Split(validation_paths=["v.txt"]))
    spec.model.gpt.CopyFrom(pb.GptModel(width=8, layers=1, heads=1))
    spec.epochs = 1
    directory, result = succeeded(spec, tmp_path)
    assert result.lineage.dataset == "5800 bytes of text in 2 files"
    # 5,200 bytes, of which 780 are the test part; and 600.
    assert parts_of(directory) == {"train": 552, "validation": 74, "test": 97}


# Under the service, whose jobs are confined


@pytest.fixture
async def house(tmp_path: Path) -> House:
    registry = ScriptedRegistry()  # type: ignore[abstract]  # answers what is asked here
    return House(tmp_path, registry, command=WORKER_COMMAND)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    folder.mkdir()
    write(folder / "a.csv", ["size", "kind"], training_rows(DRY_RUN_ROWS * 3))
    write(folder / "t.csv", ["size", "kind"], far_rows(2))
    rows = [(*row, ("train", "validation", "test")[n % 3]) for n, row in
            enumerate(training_rows(300))]  # fmt: skip
    write(folder / "parts.csv", ["size", "kind", "part"], rows)
    return folder


@pytest.fixture
async def trainer(house: House, files: Path) -> AsyncIterator[TrainerUnderTest]:
    async with (
        serving_registry(house.registry, house.registry_address),
        house.trainer(data_root=(str(files),)) as trainer,
    ):
        yield trainer


@pytest.mark.slow
async def test_a_confined_job_of_two_processes_reads_the_files_of_all_parts(
    trainer: TrainerUnderTest,
) -> None:
    spec = job("a.csv", test_paths=["t.csv"])
    spec.epochs = 1
    created = await trainer.client.create_job(spec, policy=RunPolicy(processes=2))
    ended = await trainer.ended(created.name)
    assert ended.state == pb.TrainingJob.STATE_SUCCEEDED, ended.error
    rows = {part.split: part.rows for part in ended.data_summary.parts}
    assert rows["test"] == 2
    assert rows["train"] + rows["validation"] == DRY_RUN_ROWS * 3


async def test_a_dry_run_meets_every_part_however_small(trainer: TrainerUnderTest) -> None:
    spec = job("a.csv", test_paths=["t.csv"])
    client = trainer.client.with_timeout(120)
    assert await client.create_job(spec, dry_run=True, validate_only=True)
    spec.split.column = "size"
    with pytest.raises(InvalidArgument, match=r"split\.test_paths: expected no files beside"):
        await client.create_job(spec, dry_run=True, validate_only=True)
    spec = job("parts.csv", column="size")
    with pytest.raises(FailedPrecondition, match="column 'size' holds none of train, validation"):
        await client.create_job(spec, dry_run=True, validate_only=True)


@pytest.mark.parametrize("path", ["absent.csv", "/etc/hosts.csv", "../files/t.csv"])
async def test_a_file_of_a_part_must_lie_below_a_data_root(
    trainer: TrainerUnderTest, path: str
) -> None:
    spec = job("a.csv", validation_paths=["t.csv"], test_paths=[path])
    with pytest.raises(InvalidArgument) as raised:
        await trainer.client.create_job(spec)
    (violation,) = raised.value.violations
    assert violation.field == "training_job.spec.split.test_paths[0]"
    with pytest.raises(InvalidArgument) as raised:
        await trainer.client.inspect_dataset(spec.dataset, split=spec.split)
    assert [one.field for one in raised.value.violations] == ["split.test_paths[0]"]


async def test_the_command_line_looks_at_tables_that_are_divided(
    house: House, trainer: TrainerUnderTest
) -> None:
    written = house.tmp_path / "spec.yaml"
    ask = ("data", "inspect", "--target", "kind")
    # What the table itself says is suggested.
    status, output = await cli(house, *ask, "parts.csv", "--write-spec", str(written))
    assert status == 0, output
    spec = read_specification(written)
    assert spec.split == pb.Split(column="part")
    assert [column.name for column in spec.dataset.table.columns] == ["size"]
    assert await trainer.client.create_job(spec, validate_only=True)
    written.unlink()
    files = ("a.csv", "--test", "t.csv", "--write-spec", str(written))
    status, output = await cli(house, *ask, *files)
    assert status == 0, output
    spec = read_specification(written)
    assert spec.split == pb.Split(test_paths=["t.csv"], validation_fraction=0.15, seed=1)
    assert await trainer.client.create_job(spec, validate_only=True)
    status, output = await cli(house, *ask, "parts.csv", "--split-column", "size", "--json")
    (warning,) = json.loads(output)["warnings"]
    assert "expected the texts train, validation, test, got double" in warning
    status, output = await cli(house, *ask, "parts.csv", "--group-column", "absent")
    assert (status, "split.group_column" in output) == (1, True), output
