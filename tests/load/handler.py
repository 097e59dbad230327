"""What one writes by hand: a grpc.aio method that parses, runs ONNX Runtime and serialises.

    python -m tests.load.handler --replies FOLDER --model FILE --address-file FILE

It checks nothing, queues nothing, counts only its calls and knows no deadline. It runs on the
event loop, as is best for a model of microseconds. Beside the echo it shows what ONNX Runtime and
protobuf cost in a server of this kind; beside it the server shows what its promises cost.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from modelrail.oip.v2 import grpc_service_pb2 as pb
from modelrail.tensor import NUMPY_TYPES, datatype_of
from tests.load.echo import Echo, serve


def command(replies: Path, model: Path) -> list[str]:
    """Returns the command that runs it."""
    program = [sys.executable, "-m", "tests.load.handler", "--replies", str(replies)]
    return [*program, "--model", str(model)]


class Handler(Echo):
    """The echo, with a model in place of the recorded answer.

    Args:
        replies: Folder of the recorded replies.
        model: The ONNX file; its tensors hold numbers.
    """

    def __init__(self, replies: Path, model: Path) -> None:
        super().__init__(replies)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            str(model), options, providers=["CPUExecutionProvider"]
        )
        self._outputs = [output.name for output in self._session.get_outputs()]

    async def infer(self, request: bytes, context: Any) -> bytes:
        """Answers a serialised ModelInferRequest."""
        self._calls += 1
        message = pb.ModelInferRequest.FromString(request)
        inputs = {
            tensor.name: np.frombuffer(raw, NUMPY_TYPES[tensor.datatype]).reshape(tensor.shape)
            for tensor, raw in zip(message.inputs, message.raw_input_contents, strict=True)
        }
        response = pb.ModelInferResponse(model_name=message.model_name, model_version="1")
        arrays = self._session.run(self._outputs, inputs)
        for name, array in zip(self._outputs, arrays, strict=True):
            response.outputs.add(name=name, datatype=datatype_of(array), shape=array.shape)
            response.raw_output_contents.append(array.tobytes())
        return response.SerializeToString()


def main() -> None:
    """Runs the server."""
    parser = argparse.ArgumentParser(description="A grpc.aio handler with ONNX Runtime, by hand.")
    parser.add_argument("--replies", type=Path, required=True, help="folder of recorded replies")
    parser.add_argument("--model", type=Path, required=True, help="the ONNX file")
    parser.add_argument("--address-file", type=Path, required=True, help="told when it listens")
    options = parser.parse_args()
    asyncio.run(serve(Handler(options.replies, options.model), options.address_file))


if __name__ == "__main__":
    main()
