"""`modelrail demo`: from a data set to served predictions, with everything real."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.table import Table

from modelrail.cli.command import Failure, command
from modelrail.cli.commands.train import wait_until_ready
from modelrail.cli.commands.up import show_addresses
from modelrail.cli.console import note, say, stdout, waiting
from modelrail.cli.following import metrics_text, run_job
from modelrail.cli.measure import Measurement, measure
from modelrail.cli.picture import shaded
from modelrail.cli.session import Session
from modelrail.cli.specification import read_specification
from modelrail.cli.stack.launch import running_stack
from modelrail.cli.stack.stack import Stack, StackPlan
from modelrail.client.errors import Unavailable
from modelrail.client.inference import AsyncInferenceClient
from modelrail.names import ModelVersionName
from modelrail.trainer.v1 import trainer_pb2 as pb

app = typer.Typer()

_INPUT = "image"
_OUTPUT = "probabilities"
_FULL_PIXEL = 16.0
_SHOWN_IMAGES = 5
_CONCURRENCY = 8
_READY_SECONDS = 60.0
_ATTEMPTS = 5


@command(app, "demo")
async def demo(session: Session) -> None:
    """Train on handwritten digits, prove the export, publish, serve and ask, in one go."""
    spec = read_specification(Path("examples/digits.yaml"))
    served = f"{spec.publication.model}@{spec.publication.alias}"
    plan = StackPlan(data_dir=session.data_dir, serve=[served])
    _step("1/5 start registry, trainer and inference")
    async with running_stack(plan) as stack:
        show_addresses(stack.addresses)
        async with stack.session.trainer() as trainer, stack.session.inference() as inference:
            _step("2/5 train a small CNN on scikit-learn's digits, export it, prove it, publish it")
            job = await run_job(trainer, spec, every_epochs=1)
            version = ModelVersionName.parse(job.model_version)
            say(f"published {version}; {served} is now version {version.number}", style="bold")
            _step(f"3/5 wait until the inference service answers with version {version.number}")
            with waiting("loading and warming up"):
                await _ready(inference, version)
            say(f"version {version.number} is ready")
            _step("4/5 send the test images over gRPC")
            with waiting("reading the test images"):
                inputs, targets = await _test_rows(session.data_dir, spec)
            with waiting("asking"):
                one, many = await _ask(inference, version, inputs)
            accuracy = _show_answers(one, many, inputs, targets)
            _compare(job, accuracy, len(targets))
            _step("5/5 stop everything")
            _show_next(session, stack, version, inputs[0])


def _step(text: str) -> None:
    say("")
    say(text, style="bold cyan")


async def _ready(inference: AsyncInferenceClient, version: ModelVersionName) -> None:
    try:
        async with asyncio.timeout(_READY_SECONDS):
            await wait_until_ready(inference, version)
    except TimeoutError:
        raise Failure(f"{version} was not ready after {_READY_SECONDS:g} s") from None


async def _test_rows(
    data_dir: Path, spec: pb.TrainingJobSpec
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Asks the trainer's own code for the test part of the data, which training never saw."""
    folder = data_dir / "demo"
    folder.mkdir(parents=True, exist_ok=True)
    specification, rows = folder / "spec.binpb", folder / "test.npz"
    specification.write_bytes(spec.SerializeToString(deterministic=True))
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "modelrail_trainer.worker.rows",
        f"--specification={specification}",
        "--split=test",
        f"--output={rows}",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        _, errors = await process.communicate()
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    if process.returncode != 0:
        text = errors.decode(errors="replace").strip()
        raise Failure(f"the test images could not be read (status {process.returncode}):\n{text}")
    with np.load(rows, allow_pickle=False) as arrays:
        return arrays["inputs"].astype(np.float32), arrays["targets"].astype(np.int64)


async def _ask(
    inference: AsyncInferenceClient, version: ModelVersionName, inputs: NDArray[Any]
) -> tuple[Measurement, Measurement]:
    """Sends every image twice: one after another, then several at a time."""
    number = str(version.number)
    for attempt in range(_ATTEMPTS):
        try:
            one, many = [
                await measure(
                    inference, version.model, number, _INPUT, inputs, concurrency=concurrency
                )
                for concurrency in (1, _CONCURRENCY)
            ]
        except* Unavailable as failures:
            if attempt == _ATTEMPTS - 1:
                raise failures.exceptions[0] from None
        else:
            return one, many
        note("the inference service went away: asking again when it is back", style="yellow")
        await _ready(inference, version)
    raise AssertionError("every attempt returns or raises")


def _show_answers(
    one: Measurement, many: Measurement, inputs: NDArray[Any], targets: NDArray[np.int64]
) -> float:
    """Shows some answers and the figures; returns the served accuracy."""
    probabilities = np.concatenate([result.outputs[_OUTPUT] for result in one.results])
    predicted = probabilities.argmax(axis=1)
    table = Table("image", "predicted", "probability", "truth", box=None, pad_edge=False)
    wrong = np.flatnonzero(predicted != targets)[:1]
    # One mistake, where there is one, says more than a row of successes.
    shown = [*range(_SHOWN_IMAGES - len(wrong)), *wrong]
    for index in shown:
        table.add_row(
            "\n".join(shaded(inputs[index], _FULL_PIXEL)),
            str(predicted[index]),
            f"{probabilities[index, predicted[index]]:.4f}",
            str(targets[index]),
            end_section=True,
        )
        table.add_row()
    stdout().print(table)
    accuracy = float((predicted == targets).mean())
    say(f"served accuracy {accuracy:.4f} on {len(targets)} test images", style="bold")
    say(
        f"latency p50 {one.latency_seconds(50) * 1e3:.2f} ms, p99"
        f" {one.latency_seconds(99) * 1e3:.2f} ms ({len(targets)} requests of one image,"
        " one after another, over loopback)"
    )
    say(
        f"throughput {many.requests_per_second:.0f} images/s ({len(targets)} requests of one"
        f" image, {_CONCURRENCY} at a time, from one Python client)"
    )
    return accuracy


def _compare(job: pb.TrainingJob, accuracy: float, rows: int) -> None:
    trained = [m for m in job.metrics if m.name == "accuracy" and m.split == "test"]
    if not trained:
        raise Failure("the trainer reports no test accuracy to compare with")
    for metric in trained:
        # Half an image: anything less is rounding of the trainer's figure, not another answer.
        if abs(metric.value - accuracy) * rows >= 0.5:
            raise Failure(
                f"the served accuracy {accuracy:.4f} is not the trainer's: {metrics_text([metric])}"
            )
    say(f"the same as the trainer measured: {metrics_text(trained)}")


def _show_next(
    session: Session, stack: Stack, version: ModelVersionName, image: NDArray[Any]
) -> None:
    sample = session.data_dir / "demo" / "digit.npy"
    np.save(sample, image)
    folder = session.data_dir_option
    say("the services stop now and keep their data. Go on with:")
    say(f"  modelrail up{folder}")
    say("and in another terminal:")
    say(f"  modelrail models list{folder}")
    say(f"  modelrail models show {version.model}@{version.number}{folder}")
    say(f"  modelrail predict {version.model} --input image=@{sample}{folder}")
    say("  curl http://127.0.0.1:8002/metrics    # of the inference service")
    say(f"logs: {stack.log('registry').parent}")
