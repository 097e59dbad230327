"""`modelrail up`: the three services in the foreground."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from modelrail.cli.command import command
from modelrail.cli.console import say
from modelrail.cli.session import Session
from modelrail.cli.stack.launch import running_stack
from modelrail.cli.stack.process import Addresses
from modelrail.cli.stack.stack import StackPlan

EVERY_PRODUCTION_MODEL = "*@production"

app = typer.Typer()


@command(app, "up")
async def up(
    session: Session,
    *,
    registry_address: Annotated[
        str, typer.Option(help="Address of the registry, HOST:PORT.")
    ] = "127.0.0.1:8011",
    registry_metrics_address: Annotated[
        str, typer.Option(help="Metrics address of the registry.")
    ] = "127.0.0.1:8012",
    trainer_address: Annotated[
        str, typer.Option(help="Address of the trainer, HOST:PORT.")
    ] = "127.0.0.1:8021",
    trainer_metrics_address: Annotated[
        str, typer.Option(help="Metrics address of the trainer.")
    ] = "127.0.0.1:8022",
    inference_address: Annotated[
        str, typer.Option(help="Address of the inference service, HOST:PORT.")
    ] = "127.0.0.1:8001",
    inference_metrics_address: Annotated[
        str, typer.Option(help="Metrics address of the inference service.")
    ] = "127.0.0.1:8002",
    serve: Annotated[
        list[str] | None,
        typer.Option(
            help="What to serve: MODEL@ALIAS, MODEL@VERSION, or *@ALIAS for every model that has"
            " it or gets it; may be repeated. Default: *@production.",
            metavar="MODEL@ALIAS",
        ),
    ] = None,
    data_root: Annotated[
        list[Path] | None,
        typer.Option(
            help="Folder whose files training jobs may read; may be repeated. Default: none.",
            exists=True,
            file_okay=False,
        ),
    ] = None,
    object_root: Annotated[
        list[str] | None,
        typer.Option(
            help="Bucket, or folder in one, whose objects training jobs may read: s3://BUCKET/FOLDER,"
            " gs://… or az://…; may be repeated. Default: none.",
            metavar="URI",
        ),
    ] = None,
    user_code: Annotated[
        list[Path] | None,
        typer.Option(
            help="Folder whose Python modules training jobs may name for their model or data; may"
            " be repeated. Default: none.",
            exists=True,
            file_okay=False,
        ),
    ] = None,
) -> None:
    """Run registry, trainer and inference until Ctrl-C."""
    plan = StackPlan(
        data_dir=session.data_dir,
        serve=serve or [EVERY_PRODUCTION_MODEL],
        data_roots=data_root or [],
        object_roots=object_root or [],
        user_code=user_code or [],
        grpc_addresses={
            "registry": registry_address,
            "trainer": trainer_address,
            "inference": inference_address,
        },
        metrics_addresses={
            "registry": registry_metrics_address,
            "trainer": trainer_metrics_address,
            "inference": inference_metrics_address,
        },
    )
    async with running_stack(plan) as stack:
        show_addresses(stack.addresses)
        say("")
        say("in another terminal:")
        say("  modelrail train examples/digits.yaml    # train, prove the export, publish, serve")
        say("  modelrail models list")
        say("")
        say(f"logs are in {session.data_dir / 'logs'}; Ctrl-C stops everything")
        await stack.wait()


def show_addresses(addresses: Mapping[str, Addresses]) -> None:
    """Writes where each service listens."""
    for service, address in addresses.items():
        say(f"{service:<10} grpc {address.grpc:<22} metrics http://{address.metrics}/metrics")
