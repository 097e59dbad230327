"""What a request costs before anything is decoded, and what a reply may cost."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest

from modelrail.oip.v2 import grpc_service_pb2 as pb
from modelrail_inference.model.provider import Provider
from modelrail_inference.model.signature import TensorSpec
from modelrail_inference.protocol.convert import request_from_pb
from modelrail_inference.request.encode import encode
from modelrail_inference.request.message import InferenceRequest, InputTensor
from modelrail_inference.runtime.session import SessionOptions, _session_options
from modelrail_inference.threads.daemon_threads import DaemonThreads
from modelrail_server.errors import InvalidArgument, ResourceExhausted


def typed(field: str, elements: list[object]) -> InferenceRequest:
    request = pb.ModelInferRequest(model_name="m")
    contents = request.inputs.add(name="x", shape=[len(elements)]).contents
    getattr(contents, field).extend(elements)
    return request_from_pb(request)


def test_a_typed_string_costs_its_length() -> None:
    assert typed("bytes_contents", [b"a" * 1_000_000]).size_bytes >= 1_000_000


def test_many_short_strings_cost_what_they_grow_to() -> None:
    raw = b"\1\0\0\0a" * 1000
    sent = InferenceRequest("m", inputs=(InputTensor("x", "BYTES", (1000,), raw),))
    assert sent.size_bytes >= len(raw) + 64 * 1000
    assert typed("bytes_contents", [b"a"] * 1000).size_bytes >= 64 * 1000


def test_a_shape_that_promises_more_strings_than_there_are_costs_no_more() -> None:
    raw = b"\1\0\0\0a"
    sent = InferenceRequest("m", inputs=(InputTensor("x", "BYTES", (2**60,), raw),))
    assert sent.size_bytes < 1000


def test_raw_numbers_cost_their_bytes() -> None:
    sent = InferenceRequest("m", inputs=(InputTensor("x", "FP32", (4,), bytes(16)),))
    assert sent.size_bytes == 16


def test_a_request_of_countless_parts_is_refused() -> None:
    request = pb.ModelInferRequest(model_name="m")
    for _ in range(4097):
        request.inputs.add()
    with pytest.raises(InvalidArgument, match="at most 4096, got 4097"):
        request_from_pb(request)


def test_a_reply_that_does_not_fit_is_refused_by_name_and_size() -> None:
    specs = [TensorSpec("small", "FP32", (1,)), TensorSpec("large", "FP32", (1000,))]
    arrays = [np.zeros(1, np.float32), np.zeros(1000, np.float32)]
    with pytest.raises(ResourceExhausted, match=r"4000 bytes: 'small' \d+, 'large' \d+ bytes"):
        encode(specs, arrays, max_bytes=4000)
    assert [len(output.raw) for output in encode(specs, arrays, max_bytes=8000)] == [4, 4000]


def test_text_is_counted_as_it_travels() -> None:
    specs = [TensorSpec("t", "BYTES", (1,))]
    with pytest.raises(ResourceExhausted, match="'t' 3"):
        encode(specs, [np.array(["ž" * 1500], object)], max_bytes=2048)


async def test_threads_of_runs_and_files_hold_up_no_exit() -> None:
    threads = DaemonThreads(2, name="t")
    assert await threads.submit(lambda: threading.current_thread().daemon)
    with pytest.raises(ZeroDivisionError):
        await threads.submit(lambda: 1 // 0)
    threads.close()
    with pytest.raises(RuntimeError):
        threads.submit(lambda: None)


async def test_stuck_work_keeps_no_other_from_a_thread() -> None:
    threads = DaemonThreads(2, name="t")
    gate = threading.Event()
    stuck = threads.submit(lambda: gate.wait(10))
    stuck.cancel()
    async with asyncio.timeout(5):
        assert await threads.submit(lambda: 7) == 7
    gate.set()
    threads.close()


def test_idle_threads_of_a_session_do_not_spin() -> None:
    options = _session_options(SessionOptions(Provider.CPU, intra_op_threads=2))
    for pool in ("intra", "inter"):
        assert options.get_session_config_entry(f"session.{pool}_op.allow_spinning") == "0"
