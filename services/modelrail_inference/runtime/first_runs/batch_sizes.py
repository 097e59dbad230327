"""Shows whether a session needs long for another batch size than its last, and what then helps.

On a GPU convolutions are prepared anew whenever the size of the batch changes, also back to one
that was there before: on an H100 a network of ResNet-18's size took 70 ms for that, and 1.6 ms for
a run. Requests that are put together as they come hardly ever make two batches of one size in a
row. A recorded run is prepared once, so a few sizes are recorded and every batch is filled up to
one of them.
"""

from __future__ import annotations

from dataclasses import replace
from time import perf_counter

from modelrail_inference.model.batching import Padding
from modelrail_inference.model.definition import ModelSettings
from modelrail_inference.model.session_settings import CudaSettings
from modelrail_inference.model.signature import DYNAMIC, Signature
from modelrail_inference.runtime.cuda import MAX_GRAPHS, GraphError
from modelrail_inference.runtime.first_runs.made_inputs import smallest_inputs
from modelrail_inference.runtime.session import Run, RunError, Session

_TURNS = 3
_LEAST_SECONDS = 0.001
_LEAST_RUNS = 2.0
"""A change that costs less than this many runs is no reason to record them."""
_LONG_SECONDS = 0.5
"""A run that takes longer is not worth a measurement: no change of the size costs two of them."""
_MAX_BYTES = 256 << 20
"""Largest inputs of a batch that is recorded although nobody has asked for it."""


def has_fixed_items(signature: Signature, padding: Padding | None, *, batched: bool = True) -> bool:
    """Whether batches of one size are all alike: no item has sizes of its own but padded ones.

    Args:
        signature: Inputs and outputs.
        padding: Which inputs have the length of an edge; None when none has.
        batched: Whether each of them has a batch axis, of any size.
    """
    for spec in signature.inputs:
        own = {axis for axis, size in enumerate(spec.shape) if size == DYNAMIC}
        if batched:
            own.discard(0)
        if padding is not None and spec.name == padding.mask:
            own.discard(1)
        elif padding is not None and spec.name in padding.inputs:
            own.discard(padding.inputs[spec.name].axis)
        if own:
            return False
    return True


def change_seconds(session: Session, signature: Signature, padding: Padding | None) -> float:
    """Returns what another batch size costs beyond the run itself, in seconds; 0 for hardly more.

    Args:
        session: The loaded model, warmed up.
        signature: Its inputs and outputs, each with a batch axis of any size.
        padding: Which inputs have the length of an edge; None when none has.
    """
    inputs = [smallest_inputs(signature, rows, padding) for rows in (1, 2)]
    outputs = [spec.name for spec in signature.outputs]

    def seconds(rows: int) -> float:
        started = perf_counter()
        session.run(inputs[rows - 1], outputs, Run())
        return perf_counter() - started

    try:
        seconds(2)
        steady = seconds(2)
        if steady > _LONG_SECONDS:
            return 0.0
        # The least of several: what is paid once for a size, or a disturbance, is no change.
        steady = min(steady, *(seconds(2) for _ in range(_TURNS)))
        changed = min(seconds(1) + seconds(2) for _ in range(_TURNS)) / 2
    except RunError:  # the sizes were a guess
        return 0.0
    cost = changed - steady
    return cost if cost > max(_LEAST_SECONDS, _LEAST_RUNS * steady) else 0.0


def with_recorded_sizes(
    settings: ModelSettings, signature: Signature, max_batch_size: int
) -> ModelSettings:
    """Returns the settings of a model whose runs of few batch sizes are recorded.

    Those of its `batch_buckets`; without them the powers of two, the preferred sizes and the
    largest, or fewer of these where each is recorded with many lengths.

    Raises:
        GraphError: The largest batch is too large to be recorded unasked.
    """
    padding = settings.padding
    longest = padding.edges[-1] if padding else 0
    largest = smallest_inputs(signature, 1, padding, edge=longest).values()
    if max_batch_size * sum(array.nbytes for array in largest) > _MAX_BYTES:
        raise GraphError(
            f"batches of {max_batch_size} take more than {_MAX_BYTES >> 20} MiB: expected "
            "batch_buckets and optimization.cuda.graphs"
        )
    sizes = settings.batch_buckets
    if not sizes:
        powers = (1 << power for power in range(max_batch_size.bit_length()))
        preferred = settings.batching.preferred_sizes if settings.batching else ()
        sizes = tuple(sorted({*powers, *preferred, max_batch_size}))
        lengths = len(padding.edges) if padding else 1
        while len(sizes) > 1 and len(sizes) * lengths > MAX_GRAPHS:
            sizes = sizes[len(sizes) % 2 ^ 1 :: 2]  # every other one, the largest among them
    session = replace(
        settings.session,
        # What is recorded has one order.
        runs_parallel=False,
        inter_op_threads=1,
        cuda=replace(settings.session.cuda or CudaSettings(), records_graphs=True),
    )
    return replace(settings, batch_buckets=sizes, session=session)
