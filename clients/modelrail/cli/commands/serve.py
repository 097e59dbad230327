"""`modelrail serve`: any ONNX file, served without a registry."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from modelrail.cli.command import Failure, command
from modelrail.cli.commands.transfer import model_id_of
from modelrail.cli.console import say, waiting
from modelrail.cli.session import HABIT_ADDRESSES, Session
from modelrail.cli.stack.process import ServiceProcess, last_words
from modelrail.client.channel import Connection
from modelrail.client.inference import AsyncInferenceClient
from modelrail.names import ModelName
from modelrail.oip.v2 import grpc_service_pb2 as pb

app = typer.Typer()

_STOP_GRACE_SECONDS = 15.0
_POLL_SECONDS = 0.05


@command(app, "serve", data_dir=False)
async def serve(
    session: Session,
    file: Annotated[Path, typer.Argument(help="ONNX file.", exists=True, dir_okay=False)],
    *,
    name: Annotated[
        str | None, typer.Option(help="Name of the model; by default named after the file.")
    ] = None,
    grpc_address: Annotated[
        str, typer.Option(help="Address for gRPC, HOST:PORT or unix:PATH.")
    ] = HABIT_ADDRESSES["inference"],
    metrics_address: Annotated[
        str, typer.Option(help="Address for Prometheus, HOST:PORT.")
    ] = "127.0.0.1:8002",
) -> None:
    """Serve an ONNX file until Ctrl-C."""
    del session
    model = ModelName(name or model_id_of(file)).model
    if not Connection(address=grpc_address).is_local:
        raise Failure(
            f"--grpc-address: expected an address of this machine alone, got {grpc_address};"
            " for others, with TLS and keys, run `modelrail-inference"
            f" --model {file} --model-name {model} --grpc-address {grpc_address}"
            " --tls-certificate … --tls-key … --api-keys-file …`"
        )
    with tempfile.TemporaryDirectory(prefix="modelrail-serve-") as directory:
        folder = Path(directory)
        service = ServiceProcess(
            "inference",
            [f"--data-dir={folder / 'data'}", f"--model={file.resolve()}", f"--model-name={model}"],
            address_file=folder / "inference.json",
            log=folder / "inference.log",
        )
        try:
            with waiting(f"loading {file.name}"):
                addresses = await service.start(
                    grpc_address=grpc_address, metrics_address=metrics_address
                )
                metadata = await _when_ready(service, addresses.grpc, model)
            say(f"serving {model} version {', '.join(metadata.versions)} from {file}")
            say(f"  grpc     {addresses.grpc}")
            say(f"  metrics  http://{addresses.metrics}/metrics")
            for kind, tensors in (("input", metadata.inputs), ("output", metadata.outputs)):
                for tensor in tensors:
                    say(f"  {kind:<8} {tensor.name} {tensor.datatype} {list(tensor.shape)}")
            say("ask it from another terminal:")
            say(f"  {predict_command(addresses.grpc, model, metadata)}")
            say("Ctrl-C stops it")
            status = await service.wait()
            raise Failure(f"the server ended with status {status}\n{last_words(service.log)}")
        finally:
            await service.stop(_STOP_GRACE_SECONDS)


async def _when_ready(
    service: ServiceProcess, address: str, model: str
) -> pb.ModelMetadataResponse:
    """Waits until the model answers, or the server has given up."""
    async with AsyncInferenceClient(address) as client:
        while not await client.model_ready(model):
            if service.pid is None:
                raise Failure(f"the server ended\n{last_words(service.log)}")
            await asyncio.sleep(_POLL_SECONDS)
        return await client.model_metadata(model)


def predict_command(address: str, model: str, metadata: pb.ModelMetadataResponse) -> str:
    """Returns a `modelrail predict` command that the model accepts."""
    inputs = " ".join(
        f"--input '{tensor.name}={_example(list(tensor.shape), tensor.datatype)}'"
        for tensor in metadata.inputs
    )
    return f"modelrail predict {model} --inference {address} {inputs}"


_LARGEST_EXAMPLE = 256


def _example(shape: list[int], datatype: str) -> str:
    sizes = [1 if size < 0 else size for size in shape]
    total = 1
    for size in sizes:
        total *= size
    if total > _LARGEST_EXAMPLE:
        return "@input.npy"
    text = '"text"' if datatype == "BYTES" else "true" if datatype == "BOOL" else "0"
    for size in reversed(sizes):
        text = f"[{', '.join([text] * size)}]"
    return text
