"""What one writes by hand: a grpc.aio method that parses, runs ONNX Runtime and serialises.

    python -m tests.load.handler --replies FOLDER --model FILE --address-file FILE
    python -m tests.load.handler --sessions 2 --replies FOLDER --model FILE --address-file FILE

It checks nothing, bounds nothing, counts only its calls and knows no deadline. It runs on the event
loop, as is best for a model of microseconds; with sessions in threads, each of which takes all that
waits as one batch, as is simplest for larger ones. Beside the echo it shows what ONNX Runtime and
protobuf cost in a server of this kind; beside it the server shows what its promises cost.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from modelrail.oip.v2 import grpc_service_pb2 as pb
from modelrail.tensor import NUMPY_TYPES, datatype_of
from tests.load.echo import Echo, serve

MAX_BATCH = 32

Inputs = Mapping[str, Any]
_Waiting = tuple[Inputs, asyncio.Future[Sequence[Any]]]


def command(replies: Path, model: Path, *, sessions: int = 0) -> list[str]:
    """Returns the command that runs it; without sessions, on its event loop."""
    program = [sys.executable, "-m", "tests.load.handler", "--replies", str(replies)]
    return [*program, "--model", str(model), "--sessions", str(sessions)]


class Handler(Echo):
    """The echo, with a model in place of the recorded answer.

    Args:
        replies: Folder of the recorded replies.
        model: The ONNX file; its tensors hold numbers.
    """

    def __init__(self, replies: Path, model: Path) -> None:
        super().__init__(replies)
        self._session = _session(model)
        self._outputs = [output.name for output in self._session.get_outputs()]

    async def infer(self, request: bytes, context: Any) -> bytes:
        """Answers a serialised ModelInferRequest."""
        message = pb.ModelInferRequest.FromString(request)
        inputs = {
            tensor.name: np.frombuffer(raw, NUMPY_TYPES[tensor.datatype]).reshape(tensor.shape)
            for tensor, raw in zip(message.inputs, message.raw_input_contents, strict=True)
        }
        response = pb.ModelInferResponse(model_name=message.model_name, model_version="1")
        for name, array in zip(self._outputs, await self.run(inputs), strict=True):
            response.outputs.add(name=name, datatype=datatype_of(array), shape=array.shape)
            response.raw_output_contents.append(array.tobytes())
        self._calls += 1  # what a caller cancels meanwhile is no answer
        return response.SerializeToString()

    async def run(self, inputs: Inputs) -> Sequence[Any]:
        """Returns the outputs of one request."""
        outputs: Sequence[Any] = self._session.run(self._outputs, inputs)
        return outputs


class BatchingHandler(Handler):
    """The same in threads of its own, which run what waits together.

    Args:
        replies: Folder of the recorded replies.
        model: The ONNX file; its tensors hold numbers, and their first axis is the batch.
        sessions: Threads, each with a session.
    """

    def __init__(self, replies: Path, model: Path, sessions: int) -> None:
        super().__init__(replies, model)
        self._waiting: list[_Waiting] = []
        self._changed = threading.Condition()
        for session in (self._session, *(_session(model) for _ in range(sessions - 1))):
            threading.Thread(target=self._serve, args=(session,), daemon=True).start()

    async def run(self, inputs: Inputs) -> Sequence[Any]:
        """Returns the outputs of one request."""
        future: asyncio.Future[Sequence[Any]] = asyncio.get_running_loop().create_future()
        with self._changed:
            self._waiting.append((inputs, future))
            self._changed.notify()
        return await future

    def _serve(self, session: Any) -> None:
        while True:
            with self._changed:
                while not self._waiting:
                    self._changed.wait()
                batch, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
            requests = [inputs for inputs, _ in batch]
            together = {
                name: np.concatenate([inputs[name] for inputs in requests]) for name in requests[0]
            }
            loop = batch[0][1].get_loop()
            try:
                outputs = session.run(self._outputs, together)
            except Exception as error:  # noqa: BLE001 - ONNX Runtime's derive from it
                loop.call_soon_threadsafe(self._fail, batch, error)
            else:
                loop.call_soon_threadsafe(self._answer, batch, outputs)

    @staticmethod
    def _fail(batch: Sequence[_Waiting], error: Exception) -> None:
        for _, future in batch:
            if not future.done():
                future.set_exception(error)

    def _answer(self, batch: Sequence[_Waiting], outputs: Sequence[Any]) -> None:
        self._executions += 1
        self._items += len(outputs[0])
        first = 0
        for inputs, future in batch:
            end = first + len(next(iter(inputs.values())))
            if not future.done():
                future.set_result([array[first:end] for array in outputs])
            first = end


def _session(model: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def main() -> None:
    """Runs the server."""
    parser = argparse.ArgumentParser(description="A grpc.aio handler with ONNX Runtime, by hand.")
    parser.add_argument("--replies", type=Path, required=True, help="folder of recorded replies")
    parser.add_argument("--model", type=Path, required=True, help="the ONNX file")
    parser.add_argument(
        "--sessions", type=int, default=0, help="threads with one each; 0: on the event loop"
    )
    parser.add_argument("--address-file", type=Path, required=True, help="told when it listens")
    options = parser.parse_args()
    if options.sessions:
        handler: Handler = BatchingHandler(options.replies, options.model, options.sessions)
    else:
        handler = Handler(options.replies, options.model)
    asyncio.run(serve(handler, options.address_file))


if __name__ == "__main__":
    main()
