"""The settings of the inference service."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from modelrail.names import InvalidName, check_id
from modelrail_inference.model.provider import Provider
from modelrail_inference.sources.file_name import name_of_file
from modelrail_inference.sources.registry.reference import (
    EveryModelWith,
    Reference,
    parse_reference,
)
from modelrail_inference.threads.plan import Optimize
from modelrail_server.address import Address
from modelrail_server.config import ConfigError, ServerConfig, setting


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceConfig(ServerConfig):
    """Which models to serve, on what, and within which limits.

    Raises:
        ConfigError: Not exactly one of registry, model repository and model file is given, or a
            field that belongs to another one.
    """

    grpc_address: str = setting("127.0.0.1:8001", "Address for gRPC: HOST:PORT or unix:PATH.")
    metrics_address: str = setting("127.0.0.1:8002", "Address for Prometheus, path /metrics.")
    data_dir: Path = setting(Path(".modelrail/inference"), "Folder for verified copies of models.")

    registry: str | None = setting(None, "Address of the registry to serve models from.")
    registry_api_key_file: Path | None = setting(None, "File with the key for the registry.")
    registry_ca_certificate: Path | None = setting(
        None, "PEM file of the authority of the registry's certificate; turns TLS on."
    )
    serve: tuple[str, ...] = setting(
        (),
        "Model to serve: MODEL@ALIAS (followed), MODEL@3, MODEL for MODEL@production, or *@ALIAS "
        "for every model that has the alias, now and later.",
    )
    max_models: int = setting(
        1000, "Most models of the registry; further ones that *@ALIAS means are not served.",
        minimum=1, maximum=100_000,
    )  # fmt: skip
    model_repository: Path | None = setting(None, "Folder of models in Triton's layout.")
    model: Path | None = setting(None, "One ONNX file to serve, without a registry.")
    model_name: str | None = setting(None, "Name of --model; without it the file's.")

    provider: Provider = setting(
        Provider.AUTO,
        "Execution provider; auto takes CUDA where it loads and runs anything of the model.",
    )
    default_max_batch_size: int = setting(
        64,
        "Largest batch of models without configuration whose first dimensions are dynamic.",
        minimum=0,
        maximum=1 << 20,
    )
    workers: int = setting(
        1,
        "Processes that serve on one port. From 2 on, a supervisor starts and replaces them;\n"
        "limits of queues, memory and connections are those of each.",
        minimum=1,
        maximum=64,
    )
    worker_heartbeat_timeout_seconds: float = setting(
        10.0, "A worker that is silent for so long is killed and replaced.",
        minimum=0.5, maximum=600,
    )  # fmt: skip
    optimize: Optimize = setting(
        Optimize.LATENCY,
        "What the CPUs are for. latency: one run at a time on all of them; throughput: as many\n"
        "runs as CPUs, each on one thread.",
    )
    run_threads: int = setting(
        0, "Runs of models at a time; 0: as --optimize plans.", minimum=0, maximum=1024
    )
    intra_op_threads: int = setting(
        0, "Threads that share one operator; 0: as --optimize plans.", minimum=0, maximum=1024
    )
    max_queue_items: int = setting(
        1000, "Requests that may wait; more are refused.", minimum=0, maximum=1_000_000
    )
    max_queue_bytes: int = setting(
        1 << 30,
        "Memory of waiting and running requests in bytes: of their inputs, and of outputs as\n"
        "large as the model's last. A string counts about 100 more than its length.",
        minimum=1,
    )
    max_model_queue_items: int = setting(
        0, "Requests of one model that may wait; 0: as many as --max-queue-items.",
        minimum=0, maximum=1_000_000,
    )  # fmt: skip
    max_model_queue_bytes: int = setting(
        0,
        "Memory of one model's waiting requests in bytes; 0: --max-queue-bytes.",
        minimum=0,
    )
    max_unread_bytes: int = setting(
        1 << 30,
        "Memory of replies that their callers have not read yet in bytes. A connection on which\n"
        "as much waits as is still free gets no new ones. What runs already comes on top; beyond\n"
        "twice this number nobody gets new ones.",
        minimum=1,
    )
    max_stream_in_flight: int = setting(
        32, "Requests in flight on one stream; the rest stay with the caller.", minimum=1,
        maximum=10_000,
    )  # fmt: skip
    load_threads: int = setting(
        2, "Models loaded at a time; as many more may be stuck in a load.", minimum=1, maximum=64
    )
    load_timeout_seconds: float = setting(
        300.0, "Longest load of a model, first run included, before it is given up.",
        minimum=0.1, maximum=86_400,
    )  # fmt: skip
    warmup_timeout_seconds: float = setting(
        60.0, "Longest first run of a model before it is refused.", minimum=0.1, maximum=3600
    )
    vouched: bool = setting(
        False,
        "Load models of --model and --model-repository without a trial in a throw-away process:\n"
        "the operator vouches for them. Those of a registry were tried when they came to it.",
    )
    trial_cpu_seconds: int = setting(
        10, "Longest trial load in seconds of CPU time.", minimum=1, maximum=3600
    )
    trial_memory_bytes: int = setting(
        2 << 30,
        "Memory of a trial load in bytes, beyond three times the size of the model's files.",
        minimum=1 << 20,
        maximum=1 << 50,
    )
    trial_timeout_seconds: float = setting(
        30.0, "Longest trial load in seconds.", minimum=0.1, maximum=3600
    )

    def __post_init__(self) -> None:
        """Checks what one field alone cannot tell."""
        ServerConfig.__post_init__(self)
        sources = [self.registry, self.model_repository, self.model]
        if sum(source is not None for source in sources) != 1:
            raise ConfigError(
                "registry",
                "expected exactly one source of models: --registry HOST:PORT with --serve, "
                "--model-repository DIR, or --model FILE.onnx",
            )
        if self.registry is not None and not self.serve:
            raise ConfigError(
                "serve", "expected what to serve from --registry: MODEL@ALIAS or *@production"
            )
        if self.serve and self.registry is None:
            raise ConfigError("serve", "expected --registry HOST:PORT as well")
        if self.model_name is not None and self.model is None:
            raise ConfigError("model_name", "expected --model as well")
        if self.model_repository is not None and not self.model_repository.is_dir():
            raise ConfigError("model_repository", f"{self.model_repository} is not a folder")
        if self.model is not None and not self.model.is_file():
            raise ConfigError("model", f"{self.model} is not a file")
        if self.workers > 1 and Address.parse(self.grpc_address).path:
            raise ConfigError(
                "workers",
                f"expected 1 with --grpc-address {self.grpc_address}, got {self.workers}: "
                "processes can share a port, but no unix socket",
            )
        named = {r.model for r in self.references() if not isinstance(r, EveryModelWith)}
        if len(named) > self.max_models:
            raise ConfigError(
                "max_models", f"expected at least {len(named)}: --serve names as many"
            )
        if self.model is not None:
            self.served_name()

    def owned_folder(self) -> Path | None:
        """Returns the folder that no other inference service may use at the same time.

        Others would delete what this one serves. Models in Triton's layout are only read, so any
        number of processes can share them: None.
        """
        if self.registry is not None:
            return self.data_dir.absolute()
        if self.model is not None:
            return self.data_dir.absolute() / "files" / self.served_name()
        return None

    def of_worker(self, number: int, grpc_address: str) -> InferenceConfig:
        """Returns the settings of one of several workers.

        Each keeps copies of its own: two processes that download, verify and delete in one folder
        would have to agree on every step.

        Args:
            number: Which of the workers it is.
            grpc_address: The address that all of them share.
        """
        folder = self.data_dir / "workers" / str(number)
        return replace(self, grpc_address=grpc_address, data_dir=folder)

    def references(self) -> list[Reference | EveryModelWith]:
        """Returns what --serve names.

        Raises:
            ConfigError: A reference is malformed.
        """
        try:
            return [parse_reference(text) for text in self.serve]
        except InvalidName as error:
            raise ConfigError("serve", str(error)) from None

    def served_name(self) -> str:
        """Returns the name that --model is served under.

        Raises:
            ConfigError: The name is malformed.
        """
        if self.model is None:
            raise ConfigError("model", "expected a file, got none")
        try:
            if self.model_name is not None:
                return check_id(self.model_name, what="model name")
            return name_of_file(self.model)
        except InvalidName as error:
            raise ConfigError("model_name", str(error)) from None
