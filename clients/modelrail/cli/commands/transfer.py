"""`modelrail push` and `modelrail pull`: versions into and out of the registry."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from modelrail.cli.command import Failure, command
from modelrail.cli.commands.models import AsJson, Reference, resolve
from modelrail.cli.console import as_json, say, say_json, transfer_bar, waiting
from modelrail.cli.session import Session
from modelrail.names import ModelAliasName, ModelName, ModelVersionName
from modelrail.registry.v1 import registry_pb2 as pb

app = typer.Typer()

_MODEL_FILE = "model.onnx"
_CONFIG_FILE = "config.pbtxt"
_NOT_IN_IDS = re.compile(r"[^a-z0-9._-]+")


@command(app, "push", "registry")
async def push(
    session: Session,
    file: Annotated[Path, typer.Argument(help="ONNX file.", exists=True, dir_okay=False)],
    *,
    model: Annotated[
        str | None, typer.Option(help="Model to publish to; by default named after the file.")
    ] = None,
    alias: Annotated[str | None, typer.Option(help="Alias to point at the new version.")] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="Configuration in Triton's format: batches, queues, warm-up.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    description: Annotated[str, typer.Option(help="What is particular about it.")] = "",
    json: AsJson = False,
) -> None:
    """Publish an ONNX file as a new version."""
    name = ModelName(model or model_id_of(file))
    alias_name = ModelAliasName(name.model, alias) if alias else None
    async with session.registry() as registry:
        with transfer_bar(f"uploading {file.name}") as on_progress:
            entry = await registry.upload_file(
                file,
                version_path=_MODEL_FILE,
                media_type="application/onnx",
                on_progress=on_progress,
            )
        files = [entry]
        if config is not None:
            files.append(
                await registry.upload_file(
                    config, version_path=_CONFIG_FILE, media_type="text/plain"
                )
            )
        with waiting("the registry examines the file"):
            version = await registry.with_timeout(150.0).create_model_version(
                str(name),
                pb.ModelVersion(files=files, description=description),
                create_model=True,
            )
        if alias_name is not None:
            await registry.set_alias(str(alias_name), version.name)
    if json:
        say_json(as_json(version))
        return
    say(f"published {version.name}")
    if alias_name is not None:
        say(f"{name.model}@{alias_name.alias} is now version {version.number}")


@command(app, "pull", "registry")
async def pull(
    session: Session,
    reference: Reference,
    directory: Annotated[Path, typer.Argument(help="Folder for the files.")],
) -> None:
    """Download the files of a version, verified, and resumed where an earlier pull stopped."""
    async with session.registry() as registry:
        version = await resolve(registry, reference)
        with transfer_bar(f"downloading {reference}") as on_progress:
            await registry.pull(version, directory, on_progress=on_progress)
    say(f"{version.name}:")
    for file in version.files:
        say(f"  {directory / file.path}  {file.size_bytes:,} bytes")


def model_id_of(file: Path) -> str:
    """Returns the model id that a file's name suggests.

    Raises:
        Failure: The name suggests none.
    """
    name = _NOT_IN_IDS.sub("-", file.stem.lower()).strip("._-")[:64].strip("._-")
    if not name or ".." in name:
        raise Failure(f"{file.name} suggests no model id: give one")
    return name


def version_number(name: str) -> int:
    """Returns the number in `models/MODEL/versions/NUMBER`."""
    return ModelVersionName.parse(name).number
