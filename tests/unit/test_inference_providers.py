"""The provider that runs a model is the one that was asked for, or the model is not served."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import structlog
from onnx import TensorProto, helper

from modelrail_inference.model.definition import (
    LoadError,
    TransientLoadError,
    VersionDefinition,
)
from modelrail_inference.model.provider import Provider
from modelrail_inference.model.session_settings import (
    CudaSettings,
    SessionSettings,
    TensorRtSettings,
)
from modelrail_inference.runtime import loader as loader_module
from modelrail_inference.runtime import provider as provider_module
from modelrail_inference.runtime.cuda import provider_chain, why_idle
from modelrail_inference.runtime.loader import SessionLoader
from modelrail_inference.runtime.provider import (
    ONNX_NAMES,
    ProviderError,
    load_libraries,
    loads,
    resolve,
)
from modelrail_inference.runtime.session import (
    DeviceError,
    ModelFileError,
    OutOfMemory,
    Run,
    RunError,
    Session,
    SessionOptions,
)

CPU, CUDA, TENSORRT = (
    ONNX_NAMES[provider] for provider in (Provider.CPU, Provider.CUDA, Provider.TENSORRT)
)


@pytest.fixture(autouse=True)
def _nothing_remembered() -> Iterator[None]:
    forget()
    yield
    forget()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", value[:1], value[1:])
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def forget() -> None:
    provider_module._working.clear()
    provider_module._say_on_cpu.cache_clear()


def build_with(monkeypatch: pytest.MonkeyPatch, *loading: str) -> None:
    """Makes ONNX Runtime a build that names all providers, of which only `loading` load."""

    class FakeSession:
        def __init__(self, *_: Any, providers: list[str], **__: Any) -> None:
            self._providers = [name for name in providers if name in loading]

        def get_providers(self) -> list[str]:
            return [*self._providers, CPU]

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [TENSORRT, CUDA, CPU])
    monkeypatch.setattr(onnxruntime, "InferenceSession", FakeSession)
    monkeypatch.setattr(provider_module, "_DRIVER", "libc.so.6")
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)


def test_a_provider_that_is_only_named_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    build_with(monkeypatch)
    with pytest.raises(ProviderError, match=r"'cuda' does not load .*\(what loads: cpu; "):
        resolve(Provider.CUDA)
    assert resolve(Provider.AUTO) is Provider.CPU


def test_a_provider_whose_session_fails_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("libcudnn.so.9: cannot open shared object file")

    build_with(monkeypatch)
    monkeypatch.setattr(onnxruntime, "InferenceSession", fail)
    with pytest.raises(ProviderError, match="'tensorrt' does not load"):
        resolve(Provider.TENSORRT)


def test_libraries_that_are_missing_are_named_and_nothing_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def preload() -> None:
        print("Failed to load /opt/site/nvidia/libcudart.so.13: no such file")
        print("Failed to load libcublas.so.13: libcublas.so.13: cannot open shared object file")
        print("Please follow the documentation")

    build_with(monkeypatch)
    monkeypatch.setattr(onnxruntime, "preload_dlls", preload)
    with pytest.raises(ProviderError) as raised:
        resolve(Provider.CUDA)
    assert "machine: libcudart.so.13, libcublas.so.13 cannot be loaded; " in str(raised.value)
    assert "modelrail[inference] brings CUDA's libraries (what loads" in str(raised.value)
    assert capsys.readouterr().out == ""


def test_a_driver_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    build_with(monkeypatch)
    monkeypatch.setattr(provider_module, "_DRIVER", "libnodriver.so.1")
    with pytest.raises(ProviderError, match=r"driver \(libnodriver.so.1\) cannot be"):
        resolve(Provider.CUDA)


def test_threads_that_look_at_once_leave_standard_output_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    build_with(monkeypatch)
    before = sys.stdout
    entered: list[int] = []
    second_is_in, first_is_out = threading.Event(), threading.Event()

    def preload() -> None:
        entered.append(threading.get_ident())
        if len(entered) == 1:
            second_is_in.wait(0.2)  # with the lock it does not come in
        else:
            second_is_in.set()
            first_is_out.wait(0.2)

    def look() -> None:
        load_libraries()
        first_is_out.set()

    monkeypatch.setattr(onnxruntime, "preload_dlls", preload)
    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(entered) == 2
    assert sys.stdout is before


def test_libraries_are_loaded_before_the_provider_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    build_with(monkeypatch)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: loaded.append("preloaded"))
    session = onnxruntime.InferenceSession

    def start(*arguments: Any, **named: Any) -> Any:
        loaded.append("session")
        return session(*arguments, **named)

    monkeypatch.setattr(onnxruntime, "InferenceSession", start)
    assert not loads(Provider.CUDA)
    assert loaded == ["preloaded", "session"]


def test_what_onnx_runtime_says_of_a_provider_is_told_without_folders(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("/onnxruntime_src/core/cuda_call.cc:12\nCUDA failure 35: driver too old")

    build_with(monkeypatch)
    monkeypatch.setattr(onnxruntime, "InferenceSession", fail)
    with pytest.raises(ProviderError, match=r"machine: … CUDA failure 35: driver too old"):
        resolve(Provider.CUDA)


def test_auto_takes_cuda_where_it_loads_and_never_tensorrt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    build_with(monkeypatch, CUDA, TENSORRT)
    assert resolve(Provider.AUTO) is Provider.CUDA
    assert resolve(Provider.TENSORRT) is Provider.TENSORRT


def test_auto_says_once_why_it_takes_the_cpu_where_the_build_has_cuda(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    build_with(monkeypatch)
    monkeypatch.setattr(provider_module, "_DRIVER", "libnodriver.so.1")
    with structlog.testing.capture_logs() as logs:
        assert [resolve(Provider.AUTO), resolve(Provider.AUTO)] == [Provider.CPU] * 2
    (told,) = logs
    assert (told["log_level"], told["event"]) == (
        "warning",
        "CUDA does not load: models run on the CPU",
    )
    assert "driver (libnodriver.so.1) cannot be loaded" in told["reason"]


def test_auto_says_nothing_where_the_build_is_without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CPU])
    with structlog.testing.capture_logs() as logs:
        assert resolve(Provider.AUTO) is Provider.CPU
    assert logs == []


def test_what_did_not_load_is_tried_again_and_what_did_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    build_with(monkeypatch)
    assert resolve(Provider.AUTO) is Provider.CPU
    build_with(monkeypatch, CUDA)
    assert resolve(Provider.AUTO) is Provider.CUDA
    build_with(monkeypatch)
    assert resolve(Provider.AUTO) is Provider.CUDA


def test_a_provider_that_does_not_load_is_tried_once_for_one_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    build_with(monkeypatch)
    tried: list[str] = []
    session = onnxruntime.InferenceSession

    def start(*arguments: Any, providers: list[str], **named: Any) -> Any:
        tried.extend(providers)
        return session(*arguments, providers=providers, **named)

    monkeypatch.setattr(onnxruntime, "InferenceSession", start)
    with pytest.raises(ProviderError):
        resolve(Provider.CUDA)
    assert sorted(tried) == sorted([CUDA, TENSORRT])


@pytest.mark.filterwarnings("ignore:Specified provider")
@pytest.mark.parametrize("provider", [Provider.CUDA, Provider.TENSORRT])
def test_a_session_that_fell_back_to_the_cpu_is_refused(model: Path, provider: Provider) -> None:
    if loads(provider):
        pytest.skip(f"{provider.value} loads on this machine")
    refused = f"'{provider.value}' was requested, .* without"
    if provider is Provider.TENSORRT:  # a build that has it fails in its own words
        refused += "|install TensorRT libraries"
    with pytest.raises(ModelFileError, match=refused):
        Session(model, SessionOptions(provider))


def test_a_model_that_asks_for_a_provider_that_does_not_load_is_not_served(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_with(monkeypatch)
    loader = SessionLoader(Provider.CUDA, 1, 64, 60.0)
    with pytest.raises(LoadError, match="'cuda' does not load"):
        loader.load(VersionDefinition("m", 1, model, "1"))


@pytest.mark.parametrize(
    "message",
    [
        "Failed to allocate memory for requested buffer of size 1073741824",
        "Available memory of 0 is smaller than requested bytes of 97517568",
        "CUDA failure 2: out of memory ; GPU=0",
        "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED",
    ],
)
def test_a_model_that_finds_too_little_memory_can_be_loaded_later(
    model: Path, monkeypatch: pytest.MonkeyPatch, message: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError(f"[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : {message}")

    monkeypatch.setattr(onnxruntime, "InferenceSession", fail)
    loader = SessionLoader(Provider.CPU, 1, 64, 60.0)
    with pytest.raises(TransientLoadError, match="more memory than there is"):
        loader.load(VersionDefinition("m", 1, model, "1"))


def failing_run(model: Path, message: str, *, provider: Provider = Provider.CUDA) -> Exception:
    """Returns what a run on a provider raises when ONNX Runtime says so."""

    class Failing:
        def run(self, *_: Any) -> None:
            raise RuntimeError(
                "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running Conv "
                f"node. Name:'conv' Status Message: {message} ; GPU=0 ; hostname=gpu-7 ; expr=run()"
            )

    session: Any = Session(model, SessionOptions(Provider.CPU))
    session.provider, session._session = provider, Failing()
    with pytest.raises(Exception) as raised:  # noqa: PT011 - which one is the question
        session.run({}, ["y"], Run())
    return raised.value


DEVICE_FAILURES = [
    "CUDA failure 700: an illegal memory access was encountered",
    "CUDA failure 702: the launch timed out and was terminated",
    "CUDA failure 710: device-side assert triggered",
    "CUDA failure 719: unspecified launch failure",
    "CUDA failure 214: uncorrectable ECC error encountered",
    "CUDA failure 100: no CUDA-capable device is detected",
    "CUDA failure 46: CUDA-capable device(s) is/are busy or unavailable",
    "CUDNN failure 5000: CUDNN_STATUS_EXECUTION_FAILED",
    "CUDNN failure 4000: CUDNN_STATUS_INTERNAL_ERROR",
    "CUBLAS failure 13: CUBLAS_STATUS_EXECUTION_FAILED",
    "CUBLAS failure 14: CUBLAS_STATUS_INTERNAL_ERROR",
    "CUBLAS failure 1: CUBLAS_STATUS_NOT_INITIALIZED",
    "CUFFT failure 5: CUFFT_INTERNAL_ERROR",
]


@pytest.mark.parametrize("message", DEVICE_FAILURES)
def test_a_device_that_fails_in_a_run_is_told_from_inputs_that_the_model_cannot_compute(
    model: Path, message: str
) -> None:
    error = failing_run(model, message)
    assert isinstance(error, DeviceError)
    assert str(error) == f"the device failed: {message}"


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("CUDA failure 2: out of memory", OutOfMemory),
        ("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED", OutOfMemory),
        (
            "CUDNN failure 4002: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
            OutOfMemory,
        ),
        ("CUDA failure 9: invalid configuration argument", RunError),
        ("CUDNN failure 2000: CUDNN_STATUS_BAD_PARAM", RunError),
        ("CUBLAS failure 7: CUBLAS_STATUS_INVALID_VALUE", RunError),
    ],
)
def test_what_sizes_of_inputs_cause_is_no_failure_of_the_device(
    model: Path, message: str, kind: type[Exception]
) -> None:
    assert type(failing_run(model, message)) is kind


def test_no_name_in_a_model_of_the_cpu_makes_a_device_fail(model: Path) -> None:
    assert type(failing_run(model, DEVICE_FAILURES[0], provider=Provider.CPU)) is RunError


def test_a_model_that_meets_a_failed_device_can_be_loaded_later(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError(f"[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : {DEVICE_FAILURES[0]}")

    monkeypatch.setattr(loader_module, "resolve", lambda provider: provider)
    monkeypatch.setattr(onnxruntime, "InferenceSession", fail)
    loader = SessionLoader(Provider.CUDA, 1, 64, 60.0)
    with pytest.raises(TransientLoadError, match=r"the device failed: .*CUDA failure 700"):
        loader.load(VersionDefinition("m", 1, model, "1"))


def test_a_device_that_fails_in_the_first_run_is_told_from_sizes_that_were_a_guess(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise DeviceError("the device failed: CUDA failure 700")

    monkeypatch.setattr(Session, "run", fail)
    loader = SessionLoader(Provider.CPU, 1, 64, 60.0)
    with pytest.raises(TransientLoadError, match="the device failed: CUDA failure 700"):
        loader.load(VersionDefinition("m", 1, model, "1"))


def test_a_provider_that_takes_no_operator_is_named_and_the_others_counted() -> None:
    assert why_idle({CUDA: 3, CPU: 2}, Provider.CUDA) == ""
    assert why_idle({}, Provider.CUDA) == ""  # nothing is left to compute
    assert "'cuda' takes no operator of the model (5 on CPU" in why_idle({CPU: 5}, Provider.CUDA)
    assert "'tensorrt' takes no operator" in why_idle({CUDA: 3}, Provider.TENSORRT)


def test_the_cpu_has_no_options() -> None:
    assert provider_chain(Provider.CPU, None) == [(CPU, {})]


def test_tensorrt_leaves_the_rest_to_cuda_on_the_same_device() -> None:
    settings = CudaSettings(
        memory_limit_bytes=1000,
        device=1,
        tensorrt=TensorRtSettings(half_precision=True, workspace_bytes=2000),
    )
    assert provider_chain(Provider.TENSORRT, settings) == [
        (
            TENSORRT,
            {"device_id": "1", "trt_fp16_enable": "True", "trt_max_workspace_size": "2000"},
        ),
        (CUDA, {"gpu_mem_limit": "1000", "device_id": "1"}),
    ]


def test_settings_of_a_gpu_are_refused_on_the_cpu() -> None:
    with pytest.raises(ValueError, match="device_id: expected execution provider 'cuda'"):
        SessionOptions(Provider.CPU, 1, SessionSettings(cuda=CudaSettings(device=1)))
