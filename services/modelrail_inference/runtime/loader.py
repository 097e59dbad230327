"""Turns a model file into a loaded, checked and warmed-up model."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import structlog

from modelrail_inference.model.definition import (
    LoadedModel,
    LoadError,
    ModelSettings,
    TransientLoadError,
    VersionDefinition,
)
from modelrail_inference.model.provider import Provider
from modelrail_inference.model.signature import Signature, TensorSpec
from modelrail_inference.runtime.cuda import GraphError, graph_shapes
from modelrail_inference.runtime.first_runs.batch_sizes import (
    change_seconds,
    has_fixed_items,
    with_recorded_sizes,
)
from modelrail_inference.runtime.first_runs.row_independence import why_rows_may_mix
from modelrail_inference.runtime.first_runs.tiny import is_tiny, is_tiny_in_batches
from modelrail_inference.runtime.first_runs.warmup import warm_up
from modelrail_inference.runtime.graph import is_bounded
from modelrail_inference.runtime.padded_signature import split_mask
from modelrail_inference.runtime.provider import ProviderError, resolve
from modelrail_inference.runtime.served_signature import served_signature
from modelrail_inference.runtime.session import (
    DeviceError,
    ModelFileError,
    OutOfMemory,
    ProviderIdle,
    RunError,
    Session,
    SessionOptions,
)
from modelrail_inference.runtime.trial.trials import Trials

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Served:
    """A model on its way to be served.

    Attributes:
        definition: What is loaded.
        session: The loaded file, warmed up. The only reference to it: without it the file is freed.
        settings: What it is served with.
        declared: Its inputs and outputs, and the mask that the server fills.
        signature: Its inputs and outputs as callers see them.
        mask: The input that the server fills; None without one.
        max_batch_size: Largest batch; 0 when the model has no batch dimension.
        threads: Threads that share one operator.
        batching_reason: Why requests are not put together; empty when they are.
    """

    definition: VersionDefinition
    session: Session
    settings: ModelSettings
    declared: Signature
    signature: Signature
    mask: TensorSpec | None
    max_batch_size: int
    threads: int
    batching_reason: str = ""


@dataclass(frozen=True, slots=True)
class SessionLoader:
    """Loads with ONNX Runtime.

    Attributes:
        provider: Execution provider of models that ask for none.
        intra_op_threads: Threads that share one operator.
        default_max_batch_size: Largest batch of models without configuration whose inputs and
            outputs all have a dynamic first dimension.
        warmup_timeout_seconds: Longest first runs; a model that takes longer is not served.
        trials: Loads what nobody vouched for in a throw-away process first; None to trust all.
        plans_threads: Whether `intra_op_threads` is a plan rather than somebody's choice: models
            whose runs are tiny get one thread then.
        is_trial: Whether the model is only tried, with little time: no more runs than have to.
    """

    provider: Provider
    intra_op_threads: int
    default_max_batch_size: int
    warmup_timeout_seconds: float
    trials: Trials | None = None
    plans_threads: bool = False
    is_trial: bool = False

    def load(self, definition: VersionDefinition) -> LoadedModel:
        """Loads, checks against the settings, and warms up.

        Raises:
            LoadError: The file is missing or invalid, the provider does not load, the settings
                contradict the graph, or the first run fails.
            TransientLoadError: The first run takes too long, finds too little memory, or meets a
                device that has failed.
        """
        started = time.monotonic()
        file_bytes = _file_bytes(definition)
        if self.trials is not None and not definition.vouched:
            self._try_in_child(definition, self.trials)
        try:
            served = self._warmed_up(definition)
            self._decide_batches(served)
        except DeviceError as error:
            raise TransientLoadError(str(error)) from error
        session = served.session
        if session.operators:
            _log.info("operators placed", model=definition.model, operators=dict(session.operators))
        return LoadedModel(
            model=definition.model,
            number=definition.number,
            signature=served.signature,
            max_batch_size=served.max_batch_size,
            provider=session.provider,
            session=session,
            settings=served.settings,
            load_seconds=time.monotonic() - started,
            file_bytes=file_bytes,
            metadata=session.metadata,
            mask=served.mask,
            batching_reason=served.batching_reason,
            is_bounded=session.provider is Provider.CPU and is_bounded(definition.path),
        )

    def _warmed_up(self, definition: VersionDefinition) -> _Served:
        """Loads with as many threads as the runs are worth, checks the settings, and warms up."""
        settings, threads = definition.settings, self.intra_op_threads
        session = self._session(definition, threads)
        max_batch_size = settings.max_batch_size
        if max_batch_size is None:
            max_batch_size = self.default_max_batch_size if session.signature.batchable() else 0
        declared = served_signature(session.signature, settings, max_batch_size)
        signature, mask = split_mask(declared, settings.padding)
        self._warm_up(session, declared, settings, max_batch_size)
        served = _Served(
            definition, session, settings, declared, signature, mask, max_batch_size, threads
        )
        del session  # from now on there is one reference to it
        if self._is_free(settings):
            self._fit_threads(served)
        return served

    def _fit_threads(self, served: _Served) -> None:
        """Loads a model whose runs are tiny once more, with one thread."""
        declared, settings, rows = served.declared, served.settings, served.max_batch_size
        if is_tiny(served.session, declared, settings, max_batch_size=rows):
            self._load_with(1, served)
            # One thread shows how long a batch takes; what others take of it is not counted.
            if not is_tiny_in_batches(served.session, declared, settings, max_batch_size=rows):
                self._load_with(self.intra_op_threads, served)

    def _load_with(self, threads: int, served: _Served) -> None:
        provider = served.session.provider
        # Its runs are tiny, its tables need not be: two at a time might not find the memory.
        del served.session
        served.session = _session_on(provider, served.definition, threads)
        served.threads = threads
        self._warm_up(served.session, served.declared, served.settings, served.max_batch_size)

    def _decide_batches(self, served: _Served) -> None:
        """Finds out whether requests are put together, and records the runs of few sizes."""
        settings, max_batch_size = served.settings, served.max_batch_size
        if settings.max_batch_size is None and max_batch_size > 1:
            served.batching_reason = why_rows_may_mix(served.session, served.declared)
        if settings.session.cuda is not None and settings.session.cuda.records_graphs:
            self._record(served.session, served.declared, settings, max_batch_size)
        elif (
            max_batch_size > 1
            and not served.batching_reason
            and _needs_steady_sizes(settings, served.session, served.declared)
            and (cost := change_seconds(served.session, served.declared, settings.padding))
        ):
            self._record_sizes(served, cost)
        if served.batching_reason:
            _log.warning(
                "requests are not put together",
                model=served.definition.model,
                reason=served.batching_reason,
            )

    def _session(self, definition: VersionDefinition, intra_op_threads: int) -> Session:
        wanted = definition.settings.provider or self.provider
        try:
            provider = resolve(wanted)
            return _session_on(provider, definition, intra_op_threads)
        except ProviderError as error:
            raise LoadError(str(error)) from error
        except ProviderIdle as error:
            if wanted is not Provider.AUTO or definition.settings.session.cuda is not None:
                raise LoadError(str(error)) from error
            reason = str(error)
        # Whoever leaves the choice open wants the model served: trees and texts have no GPU. Not in
        # the handler, as the error holds the frames of its trace, and they the session.
        _log.info("runs on the CPU", model=definition.model, reason=reason)
        return _session_on(Provider.CPU, definition, intra_op_threads)

    def _record_sizes(self, served: _Served, cost: float) -> None:
        """Loads once more, with the runs of few batch sizes recorded.

        If they cannot be, the model is loaded plainly, and its requests are not put together.

        Args:
            served: The model as it was loaded.
            cost: What a batch of another size than the last costs, in seconds.
        """
        definition, signature = served.definition, served.declared
        why = f"a batch of another size than the last takes {cost * 1000:.0f} ms more"
        del served.session  # two at a time might not find the memory
        try:
            settings = with_recorded_sizes(served.settings, signature, served.max_batch_size)
            served.session = self._recorded(served, settings)
        except (GraphError, LoadError) as error:
            reason = str(error)
        else:
            served.settings = settings
            sizes = list(settings.batch_buckets)
            _log.info("runs recorded", model=definition.model, batch_sizes=sizes, reason=why)
            return
        # Not in the handler: the error holds the frames of its trace, and they the session.
        served.session = _session_on(Provider.CUDA, definition, served.threads)
        self._warm_up(served.session, signature, definition.settings, served.max_batch_size)
        served.batching_reason = f"{why}, and runs cannot be recorded: {reason}"

    def _recorded(self, served: _Served, settings: ModelSettings) -> Session:
        definition = replace(served.definition, settings=settings)
        session = _session_on(Provider.CUDA, definition, served.threads)
        self._record(session, served.declared, settings, served.max_batch_size)
        return session

    def _record(
        self, session: Session, signature: Signature, settings: ModelSettings, max_batch_size: int
    ) -> None:
        """Records the runs of all batch buckets.

        Raises:
            LoadError: The shapes are not few and fixed, or the model cannot be recorded.
            TransientLoadError: It takes too long, or there is too little memory.
        """
        latest = time.monotonic() + self.warmup_timeout_seconds
        try:
            for shapes in graph_shapes(
                signature, settings.batch_buckets, settings.padding, batched=max_batch_size > 0
            ):
                if time.monotonic() > latest:
                    raise TransientLoadError(
                        "optimization.cuda.graphs: the recording took longer than "
                        f"{self.warmup_timeout_seconds:g} s"
                    )
                session.record(shapes, signature)
        except OutOfMemory as error:
            raise TransientLoadError(f"optimization.cuda.graphs: {error}") from error
        except (GraphError, RunError) as error:
            raise LoadError(f"optimization.cuda.graphs: {error}") from error

    def _warm_up(
        self, session: Session, signature: Signature, settings: ModelSettings, max_batch_size: int
    ) -> None:
        warm_up(
            session,
            signature,
            settings,
            max_batch_size=max_batch_size,
            timeout_seconds=self.warmup_timeout_seconds,
            only_needed=self.is_trial,
        )

    def _is_free(self, settings: ModelSettings) -> bool:
        """Whether nobody has chosen the number of threads, and it could be less."""
        return (
            self.plans_threads
            and self.intra_op_threads > 1
            and not settings.session.intra_op_threads
        )

    def _try_in_child(self, definition: VersionDefinition, trials: Trials) -> None:
        """Does the same load on the CPU, where a crash hurts nobody.

        Raises:
            LoadError: The file must not be loaded here.
        """
        settings = definition.settings
        on_cpu = replace(
            settings, provider=Provider.CPU, session=replace(settings.session, cuda=None)
        )
        trials.check(
            replace(self, provider=Provider.CPU, trials=None, is_trial=True),
            replace(definition, settings=on_cpu),
            threads=(settings.session.intra_op_threads or self.intra_op_threads)
            + settings.session.inter_op_threads,
        )


def _file_bytes(definition: VersionDefinition) -> int:
    """Returns the size of a version's files, which are there.

    Raises:
        LoadError: They are not, or there is something else that keeps the version from serving.
    """
    if definition.problem:
        raise LoadError(definition.problem)
    try:
        is_empty = definition.path.stat().st_size == 0
        size_bytes = definition.size_bytes()
    except OSError as error:
        raise LoadError(f"model file '{definition.path.name}' cannot be read") from error
    if is_empty:
        raise LoadError(f"model file '{definition.path.name}' is empty")
    return size_bytes


def _session_on(
    provider: Provider, definition: VersionDefinition, intra_op_threads: int
) -> Session:
    """Loads on a provider that is there.

    Raises:
        ProviderIdle: It runs nothing of the model.
        LoadError: The model or its settings cannot be loaded.
        TransientLoadError: There is too little memory.
    """
    try:
        options = SessionOptions(provider, intra_op_threads, definition.settings.session)
    except ValueError as error:
        raise LoadError(f"parameters: {error}") from error
    try:
        return Session(definition.path, options)
    except ProviderIdle:
        raise
    except ModelFileError as error:
        raise LoadError(str(error)) from error
    except OutOfMemory as error:
        raise TransientLoadError(str(error)) from error


def _needs_steady_sizes(settings: ModelSettings, session: Session, signature: Signature) -> bool:
    """Whether batches could all have few sizes, but come in any.

    Not where nobody said, nor the loader found, that rows do not influence one another: filling up
    a batch adds some.
    """
    return (
        session.provider is Provider.CUDA
        and (settings.max_batch_size is None or settings.batching is not None)
        and len(settings.batch_buckets) != 1
        and has_fixed_items(signature, settings.padding)
    )
