"""`modelrail predict`: one request to a served model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import typer

from modelrail.cli.command import Failure, command
from modelrail.cli.commands.models import AsJson, Reference
from modelrail.cli.console import say, say_json, stdout
from modelrail.cli.session import Session
from modelrail.cli.tensors import as_array, labels_of, output_table, plain, read_inputs
from modelrail.names import ModelAliasName, ModelVersionName, parse_model_reference
from modelrail.oip.v2 import grpc_service_pb2 as pb

app = typer.Typer()


@command(app, "predict", "inference", "registry")
async def predict(
    session: Session,
    model: Reference,
    *,
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            metavar="NAME=VALUE",
            help="Input as JSON, @FILE.npy or @FILE.json; once for each input.",
        ),
    ] = None,
    input_json: Annotated[
        str | None,
        typer.Option(help="All inputs as one JSON object, @FILE, or - for standard input."),
    ] = None,
    json: AsJson = False,
) -> None:
    """Ask a served model for a prediction."""
    values = await read_inputs(inputs or [], input_json)
    name, version = await target_of(session, model)
    async with session.inference() as inference:
        metadata = await inference.model_metadata(name, version)
        arrays = {
            tensor.name: as_array(tensor.name, values[tensor.name], tensor.datatype, tensor.shape)
            for tensor in metadata.inputs
            if tensor.name in values
        }
        _check_names(metadata, values.keys())
        config = await inference.model_config(name, version)
        result = await inference.infer(name, arrays, version=version)
    labels = labels_of(config.parameters)
    if json:
        say_json(
            {
                "model": result.model_name,
                "version": result.model_version,
                "outputs": {key: plain(array) for key, array in result.outputs.items()},
                "labels": labels,
            }
        )
        return
    say(f"{result.model_name} version {result.model_version}")
    for key, array in result.outputs.items():
        stdout().print(output_table(key, array, labels.get(key, [])))


async def target_of(session: Session, reference: str) -> tuple[str, str]:
    """Returns the model and the version to ask for; aliases are looked up in the registry.

    Raises:
        InvalidName: The reference is none.
        ModelrailError: The registry cannot be asked, or has no such alias.
    """
    name = parse_model_reference(reference)
    if isinstance(name, ModelVersionName):
        return name.model, str(name.number)
    if isinstance(name, ModelAliasName):
        async with session.registry() as registry:
            alias = await registry.get_alias(str(name))
        return name.model, str(ModelVersionName.parse(alias.model_version).number)
    return name.model, ""


def _check_names(metadata: pb.ModelMetadataResponse, given: Iterable[str]) -> None:
    names = set(given)
    expected = {tensor.name for tensor in metadata.inputs}
    if names != expected:
        wanted = ", ".join(
            f"{tensor.name} {tensor.datatype} {list(tensor.shape)}" for tensor in metadata.inputs
        )
        raise Failure(
            f"{metadata.name}: expected the inputs {wanted};"
            f" got {', '.join(sorted(names)) or 'none: give --input NAME=VALUE'}"
        )
