"""The service as a process of its own that has to end."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path

import grpc.aio
import onnx
import pytest
from onnx import TensorProto, helper

from modelrail.oip.v2 import grpc_service_pb2 as pb
from modelrail.oip.v2.grpc_service_pb2_grpc import GRPCInferenceServiceStub

# A model that is stuck inside one operator, where ONNX Runtime does not look at the flag to stop.
SCRIPT = """
import sys, threading
from modelrail_inference.__main__ import main
from modelrail_inference.repository.repository import Repository
from modelrail_inference.runtime.session import Session

run = Session.run

def stuck(session, inputs, outputs, options):
    if inputs["x"][0] == 1:  # the request's run, none of those that a load takes
        print("stuck", flush=True)
        threading.Event().wait()
    return run(session, inputs, outputs, options)

Session.run = stuck
Repository.close.__kwdefaults__["grace_seconds"] = 0.2
sys.exit(main())
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """y = x."""
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n"]) for n in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", "x", "y")], "g", infos[:1], infos[1:])
    path = tmp_path / "m.onnx"
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), str(path))
    return path


async def test_a_run_that_is_stuck_does_not_keep_the_process(tmp_path: Path, model: Path) -> None:
    address = tmp_path / "address.json"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", SCRIPT),
        *("--model", model, "--provider", "cpu", "--data-dir", tmp_path / "data"),
        *("--grpc-address", f"unix:{tmp_path}/s", "--metrics-address", "127.0.0.1:0"),
        *("--address-file", address, "--shutdown-grace-seconds", "0.1", "--insecure"),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(60):
            while not address.exists():  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            target = json.loads(address.read_text())["grpc_address"]
            async with grpc.aio.insecure_channel(target) as channel:
                request = pb.ModelInferRequest(model_name="m")
                tensor = request.inputs.add(name="x", datatype="FP32", shape=[1])
                tensor.contents.fp32_contents.append(1)
                call = GRPCInferenceServiceStub(channel).ModelInfer(request)
                assert process.stdout is not None
                assert await process.stdout.readline() == b"stuck\n"
                process.send_signal(signal.SIGTERM)
                assert await process.wait() == 0
                call.cancel()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
