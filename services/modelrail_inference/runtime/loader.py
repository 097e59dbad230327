"""Turns a model file into a loaded, checked and warmed-up model."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import structlog

from modelrail_inference.repository.definition import (
    LoadedModel,
    LoadError,
    ModelSettings,
    TransientLoadError,
    VersionDefinition,
)
from modelrail_inference.runtime.batch_sizes import change_seconds, recorded_sizes
from modelrail_inference.runtime.cuda import GraphError, graph_shapes
from modelrail_inference.runtime.graph import is_bounded
from modelrail_inference.runtime.padded_signature import split_mask
from modelrail_inference.runtime.provider import Provider, ProviderError, resolve
from modelrail_inference.runtime.row_independence import why_rows_may_mix
from modelrail_inference.runtime.session import (
    ModelFileError,
    OutOfMemory,
    ProviderIdle,
    RunError,
    Session,
    SessionOptions,
)
from modelrail_inference.runtime.trials import Trials
from modelrail_inference.runtime.warmup import is_tiny, warm_up
from modelrail_inference.signature import DYNAMIC, Signature, TensorSpec

_log = structlog.get_logger(__name__)


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
    """

    provider: Provider
    intra_op_threads: int
    default_max_batch_size: int
    warmup_timeout_seconds: float
    trials: Trials | None = None
    plans_threads: bool = False

    def load(self, definition: VersionDefinition) -> LoadedModel:
        """Loads, checks against the settings, and warms up.

        Raises:
            LoadError: The file is missing or invalid, the provider does not load, the settings
                contradict the graph, or the first run fails.
            TransientLoadError: The first run takes too long, or finds too little memory.
        """
        started = time.monotonic()
        settings = definition.settings
        if definition.problem:
            raise LoadError(definition.problem)
        try:
            is_empty = definition.path.stat().st_size == 0
            file_bytes = definition.size_bytes()
        except OSError as error:
            raise LoadError(f"model file '{definition.path.name}' cannot be read") from error
        if is_empty:
            raise LoadError(f"model file '{definition.path.name}' is empty")
        if self.trials is not None and not definition.vouched:
            self._try_in_child(definition, self.trials)
        session = self._session(definition, self.intra_op_threads)
        max_batch_size = settings.max_batch_size
        if max_batch_size is None:
            max_batch_size = self.default_max_batch_size if session.signature.batchable() else 0
        declared = _served_signature(session.signature, settings, max_batch_size)
        signature, mask = split_mask(declared, settings.padding)
        self._warm_up(session, declared, settings, max_batch_size)
        if self._is_free(settings) and is_tiny(
            session, declared, settings, max_batch_size=max_batch_size
        ):
            # Waking a second thread takes longer than such a run, and more processor time than it.
            session = self._session(definition, 1)
            self._warm_up(session, declared, settings, max_batch_size)
        batching_reason = ""
        if settings.session.cuda is not None and settings.session.cuda.records_graphs:
            _record(session, declared, settings, max_batch_size)
        elif session.provider is Provider.CUDA and max_batch_size > 1:
            session, settings, batching_reason = self._with_steady_sizes(
                session, definition, declared, max_batch_size
            )
        if session.operators:
            _log.info("operators placed", model=definition.model, operators=dict(session.operators))
        if settings.max_batch_size is None and max_batch_size > 1 and not batching_reason:
            batching_reason = why_rows_may_mix(session, declared)
            if batching_reason:
                _log.warning(
                    "requests are not put together", model=definition.model, reason=batching_reason
                )
        return LoadedModel(
            model=definition.model,
            number=definition.number,
            signature=signature,
            max_batch_size=max_batch_size,
            provider=session.provider,
            session=session,
            settings=settings,
            load_seconds=time.monotonic() - started,
            file_bytes=file_bytes,
            metadata=session.metadata,
            mask=mask,
            batching_reason=batching_reason,
            is_bounded=session.provider is Provider.CPU and is_bounded(definition.path),
        )

    def _session(self, definition: VersionDefinition, intra_op_threads: int) -> Session:
        wanted = definition.settings.provider or self.provider
        try:
            provider = resolve(wanted)
            return _session_on(provider, definition, intra_op_threads)
        except ProviderError as error:
            raise LoadError(str(error)) from error
        except ProviderIdle as error:
            if wanted is not Provider.AUTO:
                raise LoadError(str(error)) from error
            # Whoever leaves the choice open wants the model served: trees and texts have no GPU.
            _log.info("runs on the CPU", model=definition.model, reason=str(error))
            return _session_on(Provider.CPU, definition, intra_op_threads)

    def _with_steady_sizes(
        self,
        session: Session,
        definition: VersionDefinition,
        signature: Signature,
        max_batch_size: int,
    ) -> tuple[Session, ModelSettings, str]:
        """Records the runs of few batch sizes if another size than the last run's costs much.

        Returns:
            The session and the settings to serve with, and why requests cannot be put together.
        """
        settings = definition.settings
        if len(settings.batch_buckets) == 1:
            return session, settings, ""
        seconds = change_seconds(session, signature, settings.padding)
        if not seconds:
            return session, settings, ""
        cost = f"a batch of another size than the last takes {seconds * 1000:.0f} ms more"
        recorded = recorded_sizes(settings, max_batch_size)
        try:
            other = self._session(replace(definition, settings=recorded), self.intra_op_threads)
            self._warm_up(other, signature, recorded, max_batch_size)
            _record(other, signature, recorded, max_batch_size)
        except LoadError as error:
            reason = f"{cost}, and runs cannot be recorded: {error}"
            _log.warning("requests are not put together", model=definition.model, reason=reason)
            return session, settings, reason
        sizes = list(recorded.batch_buckets)
        _log.info("runs recorded", model=definition.model, batch_sizes=sizes, reason=cost)
        return other, recorded, ""

    def _warm_up(
        self, session: Session, signature: Signature, settings: ModelSettings, max_batch_size: int
    ) -> None:
        warm_up(
            session,
            signature,
            settings,
            max_batch_size=max_batch_size,
            timeout_seconds=self.warmup_timeout_seconds,
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
            replace(self, provider=Provider.CPU, trials=None),
            replace(definition, settings=on_cpu),
            threads=(settings.session.intra_op_threads or self.intra_op_threads)
            + settings.session.inter_op_threads,
        )


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


def _record(
    session: Session, signature: Signature, settings: ModelSettings, max_batch_size: int
) -> None:
    """Records the runs of all batch buckets.

    Raises:
        LoadError: The shapes are not few and fixed, or the model cannot be recorded.
        TransientLoadError: There is too little memory for the recordings.
    """
    try:
        shapes = graph_shapes(
            signature, settings.batch_buckets, settings.padding, batched=max_batch_size > 0
        )
        session.record(shapes, signature)
    except OutOfMemory as error:
        raise TransientLoadError(f"optimization.cuda.graphs: {error}") from error
    except (GraphError, RunError) as error:
        raise LoadError(f"optimization.cuda.graphs: {error}") from error


def _served_signature(graph: Signature, settings: ModelSettings, max_batch_size: int) -> Signature:
    """Returns what is served, after comparing the graph with the configuration.

    Raises:
        LoadError: The configuration says something that the graph does not hold.
    """
    if max_batch_size > 0 and not graph.batchable():
        fixed = next(
            (
                spec
                for spec in (*graph.inputs, *graph.outputs)
                if not spec.shape or spec.shape[0] != DYNAMIC
            ),
            None,
        )
        raise LoadError(
            f"max_batch_size is {max_batch_size}, but "
            + (
                f"'{fixed.name}' has shape {list(fixed.shape)} without a dynamic first dimension"
                if fixed
                else "the model has no inputs"
            )
        )
    inputs = _with_mask(settings, graph)
    return Signature(
        inputs=_declared("input", graph.inputs, inputs, complete=True),
        outputs=_declared("output", graph.outputs, settings.outputs, complete=False),
    )


def _with_mask(settings: ModelSettings, graph: Signature) -> tuple[TensorSpec, ...]:
    """Returns the declared inputs; the mask, which callers do not see, can be left out there."""
    mask = settings.padding.mask if settings.padding else None
    if not settings.inputs or any(spec.name == mask for spec in settings.inputs):
        return settings.inputs
    return (*settings.inputs, *(spec for spec in graph.inputs if spec.name == mask))


def _declared(
    kind: str, graph: tuple[TensorSpec, ...], declared: tuple[TensorSpec, ...], *, complete: bool
) -> tuple[TensorSpec, ...]:
    if not declared:
        return graph
    found = {spec.name: spec for spec in graph}
    names = [spec.name for spec in declared]
    unknown = [name for name in names if name not in found]
    if unknown or (complete and len(set(names)) != len(found)) or len(set(names)) != len(names):
        raise LoadError(
            f"the configuration declares the {kind}s {names}, but the graph has {list(found)}"
        )
    for spec in declared:
        actual = found[spec.name]
        if spec.datatype != actual.datatype:
            raise LoadError(
                f"the configuration declares {kind} '{spec.name}' as {spec.datatype}, but the "
                f"graph has {actual.datatype}"
            )
        if len(spec.shape) != len(actual.shape) or any(
            DYNAMIC not in (a, b) and a != b for a, b in zip(spec.shape, actual.shape, strict=True)
        ):
            raise LoadError(
                f"the configuration declares {kind} '{spec.name}' with shape {list(spec.shape)}, "
                f"but the graph has {list(actual.shape)}"
            )
    return declared
