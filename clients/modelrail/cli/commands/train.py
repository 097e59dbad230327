"""`modelrail train`: a specification in, a served version out."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Annotated

import numpy as np
import typer

from modelrail.cli.command import Failure, command
from modelrail.cli.console import note, say, stdout, waiting
from modelrail.cli.following import metrics_text, run_job
from modelrail.cli.session import Session, UsageError
from modelrail.cli.specification import read_specification
from modelrail.cli.stack.launch import running_stack
from modelrail.cli.stack.stack import Stack, StackPlan
from modelrail.cli.tensors import labels_of, output_table
from modelrail.client.errors import ModelrailError, Unavailable
from modelrail.client.inference import AsyncInferenceClient
from modelrail.client.trainer import RunPolicy
from modelrail.names import ModelVersionName
from modelrail.tensor import NUMPY_TYPES

app = typer.Typer()

_MAX_SECONDS = 366 * 86400.0
_READY_SECONDS = 60.0
# The trainer has a limit of its own, and one dry run may wait for others.
_DRY_RUN_SECONDS = 3600.0
_POLL_SECONDS = 0.05


@command(app, "train", "trainer", "inference")
async def train(
    session: Session,
    file: Annotated[
        Path, typer.Argument(help="Specification in YAML; `examples/linear.yaml` comes along.")
    ],
    *,
    detach: Annotated[
        bool, typer.Option("--detach", help="Submit the job and do not follow it.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Send one batch through the whole path, export and proof included, and train"
            " nothing more.",
        ),
    ] = False,
    dry_run_first: Annotated[
        bool,
        typer.Option("--dry-run-first", help="Submit the job when its dry run has passed."),
    ] = False,
    data_root: Annotated[
        list[Path] | None,
        typer.Option(
            help="Folder whose files the job may read, where the services are started for it alone;"
            " may be repeated. A trainer that runs was told at its start.",
            exists=True,
            file_okay=False,
        ),
    ] = None,
    user_code: Annotated[
        list[Path] | None,
        typer.Option(
            help="Folder whose Python modules the job may name, where the services are started for"
            " it alone; may be repeated. A trainer that runs was told at its start.",
            exists=True,
            file_okay=False,
        ),
    ] = None,
    priority: Annotated[
        int,
        typer.Option(
            min=-100, max=100, help="Of the jobs that wait for a place the highest is next."
        ),
    ] = 0,
    max_run_seconds: Annotated[
        float | None,
        typer.Option(
            min=0.001, max=_MAX_SECONDS, help="Stop the job when it has run for so long in all."
        ),
    ] = None,
    max_retries: Annotated[
        int,
        typer.Option(
            min=0,
            max=10,
            help="Run the job again, from its last checkpoint, after what may pass: PROCESS_DIED,"
            " DATA_UNAVAILABLE, DISK_FULL and, twice at most, STALLED.",
        ),
    ] = 0,
    processes: Annotated[
        int,
        typer.Option(min=1, max=64, help="Train with so many processes, each on its part."),
    ] = 1,
    start_within: Annotated[
        float | None,
        typer.Option(
            "--start-within-seconds",
            min=0,
            max=_MAX_SECONDS,
            help="Drop the job when it has not started by then.",
        ),
    ] = None,
) -> None:
    """Train a model, prove its export, publish it and see it served."""
    spec = read_specification(file)
    now = datetime.now(UTC)
    policy = RunPolicy(
        priority=priority,
        max_retries=max_retries,
        processes=processes,
        max_run_seconds=max_run_seconds,
        expire_time=None if start_within is None else now + timedelta(seconds=start_within),
    )
    async with AsyncExitStack() as cleanup:
        stack: Stack | None = None
        if await needs_own_services(
            session,
            "trainer",
            "inference",
            purpose="job",
            because=["--detach"] if detach else [],
            shaping={"--data-root": data_root, "--user-code": user_code},
        ):
            alias = spec.publication.alias
            note("no trainer is running: starting the services for this job only")
            model = spec.publication.model
            plan = StackPlan(
                data_dir=session.data_dir,
                serve=[f"{model}@{alias}" if alias else model],
                data_roots=data_root or [],
                user_code=user_code or [],
            )
            stack = await cleanup.enter_async_context(running_stack(plan))
            session = stack.session
        trainer = await cleanup.enter_async_context(session.trainer())
        if dry_run or dry_run_first:
            with waiting("one batch goes through the whole path"):
                await trainer.with_timeout(_DRY_RUN_SECONDS).create_job(
                    spec, policy=policy, dry_run=True, validate_only=True
                )
            say("the dry run passed: one batch was trained, exported and compared")
            if dry_run:
                return
        if detach:
            job = await trainer.create_job(spec, policy=policy)
            say(f"submitted {job.name}; follow it with: modelrail jobs watch {job.name}")
            return
        job = await run_job(trainer, spec, every_epochs=spec.log_every_epochs, policy=policy)
        if tested := [metric for metric in job.metrics if metric.split == "test"]:
            rows = "rows that training never saw" if spec.epochs else "the rows of the test part"
            say(f"on {rows}: {metrics_text(tested)}")
        say(f"published {job.model_version}", style="bold")
        version = ModelVersionName.parse(job.model_version)
        if spec.publication.alias:
            say(f"{version.model}@{spec.publication.alias} is now version {version.number}")
        inference = await cleanup.enter_async_context(session.inference())
        await _show_served(inference, version, required=stack is not None)
        folder = session.data_dir_option
        if stack is not None:
            say(f"go on with `modelrail up{folder}`, and in another terminal:")
        say(f"  modelrail models show {version.model}@{version.number}{folder}")


async def needs_own_services(
    session: Session,
    *services: str,
    purpose: str,
    because: Sequence[str] = (),
    shaping: Mapping[str, object] = MappingProxyType({}),
) -> bool:
    """Whether no trainer answers, so that the services are to be started for one command.

    Where one answers, it says which options so have no effect.

    Args:
        session: Where the trainer may be.
        services: Services that the command talks to; one that was named is never replaced.
        purpose: What they would be started for, for the message.
        because: Other options that ask for a trainer which runs already.
        shaping: What was given, by option, for services that are started.

    Raises:
        Failure: No trainer answers, and services must not be started.
    """
    if await _is_running(session):
        if idle := [option for option, value in shaping.items() if value]:
            note(
                f"a trainer runs at {session.address('trainer')} and takes the {purpose}:"
                f" {' and '.join(idle)} would count only for services that are started for it",
                style="yellow",
            )
        return False
    named = [f"--{name}/MODELRAIL_{name.upper()}" for name in services if session.is_named(name)]
    if options := [*named, *because]:
        raise Failure(
            f"no trainer answers at {session.address('trainer')}: start it, or leave"
            f" {' and '.join(options)} out to have the services started for this {purpose}"
        )
    return True


async def _is_running(session: Session) -> bool:
    try:
        async with session.trainer() as trainer:
            async for _ in trainer.with_timeout(3.0).list_jobs():
                break
    except Unavailable:
        return False
    return True


async def _show_served(
    inference: AsyncInferenceClient, version: ModelVersionName, *, required: bool
) -> None:
    """Waits until the version is served, and makes one real prediction."""
    try:
        with waiting("waiting for the inference service"):
            async with asyncio.timeout(_READY_SECONDS):
                await wait_until_ready(inference, version)
    except (TimeoutError, ModelrailError) as error:
        if required:
            raise Failure(f"{version} is published, but not served: {error}") from error
        note(f"{version} is published; the inference service does not serve it", style="yellow")
        return
    number = str(version.number)
    metadata = await inference.model_metadata(version.model, number)
    arrays = {}
    for tensor in metadata.inputs:
        dtype = NUMPY_TYPES.get(tensor.datatype)
        if dtype is None:
            raise UsageError(f"no example for {tensor.datatype} inputs")
        shape = [max(size, 1) for size in tensor.shape]
        arrays[tensor.name] = np.full(shape, "" if dtype.kind == "O" else 1, dtype=dtype)
    result = await inference.infer(version.model, arrays, version=number)
    config = await inference.model_config(version.model, number)
    labels = labels_of(config.parameters)
    names = ", ".join(
        f"{name} = ''" if array.dtype.kind == "O" else f"{name} = 1"
        for name, array in arrays.items()
    )
    say(f"served: version {result.model_version} answers, for {names}:")
    for name, values in result.outputs.items():
        stdout().print(output_table(name, values, labels.get(name, [])))


async def wait_until_ready(inference: AsyncInferenceClient, version: ModelVersionName) -> None:
    """Waits until a version answers requests; the caller sets the limit."""
    while True:
        try:
            if await inference.model_ready(version.model, str(version.number)):
                return
        except Unavailable:
            pass  # The service starts again.
        await asyncio.sleep(_POLL_SECONDS)
