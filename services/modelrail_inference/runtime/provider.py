"""Execution providers: which ones this machine has, and which one a model shall run on."""

from __future__ import annotations

import enum
import functools


class Provider(enum.Enum):
    """What computes: the choice of the operator."""

    CPU = "cpu"
    CUDA = "cuda"
    TENSORRT = "tensorrt"
    AUTO = "auto"


ONNX_NAMES = {
    Provider.CPU: "CPUExecutionProvider",
    Provider.CUDA: "CUDAExecutionProvider",
    Provider.TENSORRT: "TensorrtExecutionProvider",
}


class ProviderError(Exception):
    """The requested execution provider does not load on this machine."""


@functools.cache
def loads(provider: Provider) -> bool:
    """Whether a provider really loads: the library is there and so is the device.

    A build of ONNX Runtime names CUDA and TensorRT among its providers whether or not the libraries
    and a GPU exist. Only a session shows the truth, so the smallest model there is is loaded on it.
    """
    if provider is Provider.CPU:  # every build of ONNX Runtime has it
        return True
    import onnxruntime

    name = ONNX_NAMES[provider]
    if name not in onnxruntime.get_available_providers():
        return False
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # the answer is the result; a missing library is no news
    try:
        session = onnxruntime.InferenceSession(
            _IDENTITY, options, providers=[name], enable_fallback=0
        )
    except Exception:  # noqa: BLE001 - whatever is wrong with it, the answer is that it does not load
        return False
    return name in session.get_providers()


def loadable_providers() -> frozenset[Provider]:
    """Returns the providers that really load."""
    return frozenset(provider for provider in ONNX_NAMES if loads(provider))


def resolve(requested: Provider) -> Provider:
    """Returns the provider to run on: what was asked for, or for AUTO the best that loads.

    AUTO is never TensorRT, which takes minutes to build its engines.

    Raises:
        ProviderError: The requested provider does not load. It is never replaced silently.
    """
    if requested is Provider.AUTO:
        return Provider.CUDA if loads(Provider.CUDA) else Provider.CPU
    if not loads(requested):
        names = ", ".join(sorted(provider.value for provider in loadable_providers()))
        raise ProviderError(
            f"execution provider '{requested.value}' does not load on this machine "
            f"(what loads: {names}). Choose --provider cpu or auto, or install the libraries of "
            "the provider and onnxruntime-gpu"
        )
    return requested


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
