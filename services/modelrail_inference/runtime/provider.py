"""Execution providers: which ones this machine has, and which one a model shall run on."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
import re
import threading

import structlog

from modelrail_inference.model.provider import Provider
from modelrail_inference.runtime.messages import without_places

_log = structlog.get_logger(__name__)


ONNX_NAMES = {
    Provider.CPU: "CPUExecutionProvider",
    Provider.CUDA: "CUDAExecutionProvider",
    Provider.TENSORRT: "TensorrtExecutionProvider",
}


_DRIVER = "libcuda.so.1"
_TENSORRT_MISSING = "install TensorRT libraries"
_PRINTING = threading.Lock()
_working: set[Provider] = set()
"""Providers that were seen to load. Others are looked at again: a driver can be late."""


class ProviderError(Exception):
    """The requested execution provider does not load on this machine."""


def loads(provider: Provider) -> bool:
    """Whether a provider really loads: the library is there and so is the device."""
    return not obstacle(provider)


def obstacle(provider: Provider) -> str:
    """Returns why a provider does not load; empty when it does.

    A build of ONNX Runtime names CUDA and TensorRT among its providers whether or not the libraries
    and a GPU exist. Only a session shows the truth, so the smallest model there is is loaded on it.
    """
    if provider is Provider.CPU or provider in _working:  # every build of ONNX Runtime has the CPU
        return ""
    if not _is_built_in(provider):
        return "this build of ONNX Runtime is without it; modelrail[inference] brings another"
    reason = _failure(provider)
    if not reason:
        _working.add(provider)
    return reason


def _is_built_in(provider: Provider) -> bool:
    import onnxruntime

    return ONNX_NAMES[provider] in onnxruntime.get_available_providers()


def _failure(provider: Provider) -> str:
    """Loads the smallest model on a provider; returns what went wrong, empty for nothing."""
    import onnxruntime

    name = ONNX_NAMES[provider]
    missing = load_libraries()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # the answer is the result; a missing library is no news
    try:
        session = onnxruntime.InferenceSession(
            _IDENTITY, options, providers=[name], enable_fallback=0
        )
    except Exception as error:  # noqa: BLE001 - whatever is wrong with it, it does not load
        if _TENSORRT_MISSING in str(error):
            return missing or "TensorRT's libraries cannot be loaded"
        return missing or without_places(str(error)) or type(error).__name__
    if name in session.get_providers():
        return ""
    return missing or "ONNX Runtime left it out and did not say why"


def load_libraries() -> str:
    """Loads NVIDIA's libraries from their packages beside ONNX Runtime's; returns what is missing.

    The dynamic linker does not look into Python packages. Libraries of the system are found too.
    """
    import onnxruntime

    # It prints what it does not find, and standard output is not its place. One at a time: each
    # puts back what it found there.
    with _PRINTING, contextlib.redirect_stdout(io.StringIO()) as printed:
        try:
            onnxruntime.preload_dlls()
        except Exception as error:  # noqa: BLE001 - the session shows whether it was needed
            return without_places(str(error))
    found = re.findall(r"Failed to load (?:\S*/)?([^\s:]+)", printed.getvalue())
    if found:
        return (
            f"{', '.join(dict.fromkeys(found))} cannot be loaded; modelrail[inference] brings "
            "CUDA's libraries"
        )
    try:
        ctypes.CDLL(_DRIVER)
    except OSError:
        return f"NVIDIA's driver ({_DRIVER}) cannot be loaded"
    return ""


def resolve(requested: Provider) -> Provider:
    """Returns the provider to run on: what was asked for, or for AUTO the best that loads.

    AUTO is never TensorRT, which takes minutes to build its engines.

    Raises:
        ProviderError: The requested provider does not load. It is never replaced silently.
    """
    reason = obstacle(Provider.CUDA if requested is Provider.AUTO else requested)
    if requested is Provider.AUTO:
        if reason and _is_built_in(Provider.CUDA):
            _say_on_cpu(reason)
        return Provider.CPU if reason else Provider.CUDA
    if reason:
        others = [provider for provider in ONNX_NAMES if provider is not requested]
        names = ", ".join(sorted(provider.value for provider in others if loads(provider)))
        raise ProviderError(
            f"execution provider '{requested.value}' does not load on this machine: "
            f"{reason} (what loads: {names}; --provider auto takes the best of it)"
        )
    return requested


@functools.cache  # once for each reason, not for each model
def _say_on_cpu(reason: str) -> None:
    _log.warning("CUDA does not load: models run on the CPU", reason=reason)


def prepare() -> None:
    """Has ONNX Runtime set up what the first session of a process otherwise waits for (20 ms).

    No thread is left over.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    onnxruntime.InferenceSession(_IDENTITY, options, providers=[ONNX_NAMES[Provider.CPU]])


# y = Identity(x) for one float, opset 13: the smallest model that makes a provider show itself.
_IDENTITY = bytes.fromhex(
    "080812003a370a100a017812017922084964656e746974791201675a0f0a0178120a0a08080112040a020801"
    "620f0a0179120a0a08080112040a02080142040a00100d"
)
