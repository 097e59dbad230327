"""A bare grpc.aio server that answers recorded bytes: the floor of the transport.

    python -m tests.load.echo --replies FOLDER --address-file FILE

No message is parsed, no interceptor runs, nothing is looked up; calls of ModelInfer are counted,
for ModelStatistics. The folder has a file for each method that is answered, named after it, with
the bytes of the reply: `ModelMetadata` and `ModelInfer`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from modelrail.client import AsyncInferenceClient
from modelrail.client.channel import open_channel
from modelrail.oip.v2 import grpc_service_pb2 as pb

_SERVICE = "inference.GRPCInferenceService"
_UNLIMITED = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))


async def record(address: str, model: str, body: bytes, folder: Path) -> None:
    """Records what a server answers, for an echo to answer the same.

    Args:
        address: The server.
        model: Name of the model.
        body: A ModelInferRequest for it.
        folder: Where the files go.

    Raises:
        grpc.RpcError: The server refuses the request.
        ModelrailError: The server refuses to describe the model.
    """
    async with AsyncInferenceClient(address) as client:
        metadata = await client.model_metadata(model)
        (folder / "ModelMetadata").write_bytes(metadata.SerializeToString())
    async with open_channel(client.connection, options=_UNLIMITED) as channel:
        infer: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            f"/{_SERVICE}/ModelInfer"
        )
        (folder / "ModelInfer").write_bytes(await infer(body))


def command(replies: Path, *, delay_seconds: float = 0.0) -> list[str]:
    """Returns the command that runs the server."""
    program = [sys.executable, "-m", "tests.load.echo", "--replies", str(replies)]
    return [*program, "--delay-seconds", str(delay_seconds)]


class Echo:
    """The two methods of an inference service that a load test needs, and the count of calls.

    Args:
        replies: Folder of the recorded replies.
        delay_seconds: How long each inference waits, so that callers can give up before.
    """

    def __init__(self, replies: Path, delay_seconds: float = 0.0) -> None:
        self._delay_seconds = delay_seconds
        self._metadata = (replies / "ModelMetadata").read_bytes()
        self._infer = (replies / "ModelInfer").read_bytes()
        self._calls = 0
        # Of a model that runs here.
        self._items = 0
        self._executions = 0

    def handlers(self) -> dict[str, grpc.RpcMethodHandler[bytes, bytes]]:
        """Returns the handler of each method; all of them take and give bytes."""
        methods = {
            "ModelInfer": self.infer,
            "ModelMetadata": self.metadata,
            "ModelStatistics": self.statistics,
        }
        return {
            name: grpc.unary_unary_rpc_method_handler(method) for name, method in methods.items()
        }

    async def infer(self, request: bytes, context: Any) -> bytes:
        """Answers what the recorded server answered."""
        self._calls += 1
        if self._delay_seconds:
            await asyncio.sleep(self._delay_seconds)
        return self._infer

    async def metadata(self, request: bytes, context: Any) -> bytes:
        """Answers what the recorded server said of the model."""
        return self._metadata

    async def statistics(self, request: bytes, context: Any) -> bytes:
        """Answers how many calls came, and what ran for them."""
        response = pb.ModelStatisticsResponse()
        found = response.model_stats.add(
            inference_count=self._items, execution_count=self._executions
        )
        found.inference_stats.success.count = self._calls
        return response.SerializeToString()


async def serve(echo: Echo, address_file: Path) -> None:
    """Answers until SIGTERM."""
    server = grpc.aio.server(options=_UNLIMITED)
    handlers = echo.handlers()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    partial = address_file.with_suffix(".partial")
    partial.write_text(json.dumps({"grpc_address": f"127.0.0.1:{port}"}))
    partial.replace(address_file)
    await stop.wait()
    await server.stop(grace=None)


def main() -> None:
    """Runs the server."""
    parser = argparse.ArgumentParser(description="A bare grpc.aio server with recorded answers.")
    parser.add_argument("--replies", type=Path, required=True, help="folder of recorded replies")
    parser.add_argument("--address-file", type=Path, required=True, help="told when it listens")
    parser.add_argument("--delay-seconds", type=float, default=0.0, help="wait of each inference")
    options = parser.parse_args()
    asyncio.run(serve(Echo(options.replies, options.delay_seconds), options.address_file))


if __name__ == "__main__":
    main()
