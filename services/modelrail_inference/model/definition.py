"""What a source asks the repository to load, and what comes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from modelrail_inference.model.batching import DynamicBatching, Padding
from modelrail_inference.model.provider import Provider
from modelrail_inference.model.session_settings import SessionSettings
from modelrail_inference.model.signature import Signature, TensorSpec
from modelrail_inference.model.warmup import WarmupSample
from modelrail_inference.statistics import Statistics

CONFIG_FILE = "config.pbtxt"
"""Name of a model's configuration, in a folder of Triton's layout and among a version's files."""

MODEL_FILE = "model.onnx"
"""Name of a version's graph, unless the configuration names another."""


class LoadError(Exception):
    """A version cannot be served; the message says why and may be shown to callers."""


class TransientLoadError(LoadError):
    """A version cannot be served now: its files may be good, and trying again can help."""


@dataclass(frozen=True, slots=True)
class VersionPolicy:
    """Which of a model's versions are served: the latest few, the given ones, or all.

    Attributes:
        latest: Number of versions, counted from the newest; 0 for another rule.
        specific: The numbers; empty for another rule. Without either rule all versions are served.
    """

    latest: int = 1
    specific: tuple[int, ...] = ()

    def choose(self, numbers: Sequence[int]) -> list[int]:
        """Returns the versions to serve, in ascending order."""
        if self.specific:
            return sorted(set(self.specific))
        return sorted(numbers)[-self.latest :] if self.latest else sorted(numbers)


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """What a configuration says about a model beyond the file.

    Attributes:
        max_batch_size: Largest batch; 0 when the model has no batch dimension; None to find out.
        inputs: Inputs that the configuration declares, with the batch dimension; empty for the
            graph's own.
        outputs: Likewise; a subset of the graph's outputs serves only these.
        provider: Execution provider that the model asks for; None for the server's.
        session: Parameters of the session.
        version_policy: Which versions are served.
        file_name: Name of the ONNX file in the folder of a version.
        batching: How requests are put together; None runs each alone. Without `max_batch_size`
            nobody has said anything, and requests are put together where that is safe.
        padding: How requests of different lengths get into one batch; None where they do not.
        batch_buckets: The only batch sizes that the session sees, ascending; empty for any.
        instances: Runs at a time, of as many as the server has threads; 0 for all of these.
        rejects_nonfinite: Whether requests with NaN or infinities are refused.
        warmup: Sample requests that run before a version is ready; empty for a guess.
    """

    max_batch_size: int | None = None
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    provider: Provider | None = None
    session: SessionSettings = field(default_factory=SessionSettings)
    version_policy: VersionPolicy = VersionPolicy()
    file_name: str = MODEL_FILE
    batching: DynamicBatching | None = None
    padding: Padding | None = None
    batch_buckets: tuple[int, ...] = ()
    instances: int = 0
    rejects_nonfinite: bool = False
    warmup: tuple[WarmupSample, ...] = ()


@dataclass(frozen=True, slots=True)
class VersionDefinition:
    """One version that shall be served.

    Attributes:
        model: Name of the model.
        number: Number of the version.
        path: The ONNX file, in a folder that holds nothing but the version's files.
        fingerprint: Changes when the file or the settings do; a version whose fingerprint is
            loaded already is not loaded again.
        settings: What the configuration says.
        problem: Why the version cannot be served, where that is known already; empty otherwise.
        vouched: Whether somebody has shown that the file can be loaded without harm.
    """

    model: str
    number: int
    path: Path
    fingerprint: str
    settings: ModelSettings = field(default_factory=ModelSettings)
    problem: str = ""
    vouched: bool = True

    def size_bytes(self) -> int:
        """Returns the size of all files of the version: weights can lie beside the graph.

        Raises:
            OSError: They cannot be read.
        """
        files = self.path.parent.rglob("*")
        return sum(path.stat().st_size for path in files if path.is_file())


class Runnable(Protocol):
    """A loaded file."""

    @property
    def metadata(self) -> Mapping[str, str]:
        """What the file says about itself."""

    def run(
        self, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str], run: Any
    ) -> list[NDArray[Any]]:
        """Computes the named outputs."""


@dataclass(slots=True)
class LoadedModel:
    """A version in memory, warmed up.

    Attributes:
        model: Name of the model.
        number: Number of the version.
        signature: Served inputs and outputs, with the batch dimension.
        max_batch_size: Largest batch; 0 when the model has no batch dimension.
        provider: Execution provider that runs it.
        settings: What the configuration said, and which runs are recorded without its saying so.
        session: The loaded file; None once the version is unloaded.
        load_seconds: What loading and warming up took.
        file_bytes: Size of the version's files: the graph, and weights beside it.
        metadata: What the exporter wrote into the file.
        statistics: What the version has done.
        mask: The input that the server fills and callers do not see; None without one.
        is_bounded: Whether the sizes of its inputs bound the time of a run, whatever their values.
        batching_reason: Why requests are not put together although nobody has forbidden it; empty
            when they are, or when the configuration decides.
        device_failure: Why its runs fail whatever the inputs; empty while the device works.
    """

    model: str
    number: int
    signature: Signature
    max_batch_size: int
    provider: Provider
    session: Runnable | None
    settings: ModelSettings = field(default_factory=ModelSettings)
    load_seconds: float = 0.0
    file_bytes: int = 0
    metadata: Mapping[str, str] = field(default_factory=dict)
    statistics: Statistics = field(default_factory=Statistics)
    mask: TensorSpec | None = None
    is_bounded: bool = False
    batching_reason: str = ""
    device_failure: str = ""

    def batching(self) -> DynamicBatching | None:
        """Returns how requests are put together; None when each runs alone."""
        if self.max_batch_size == 0:
            return None
        if self.settings.max_batch_size is not None:
            return self.settings.batching
        return None if self.batching_reason else DynamicBatching()

    def rows_together(self) -> int:
        """Returns the items of several requests that may run together; 1 when each runs alone.

        What a configuration says about queues holds also where each runs alone.
        """
        return 1 if self.batching() is None or self.batching_reason else self.max_batch_size

    def close(self) -> None:
        """Frees the memory of the file; nothing may run any more."""
        self.session = None


class Loader(Protocol):
    """Makes a definition a loaded model. Blocks, so it is called on a thread."""

    def load(self, definition: VersionDefinition) -> LoadedModel:
        """Loads and warms up one version.

        Raises:
            LoadError: It cannot be served; a `TransientLoadError` where trying again can help.
        """
