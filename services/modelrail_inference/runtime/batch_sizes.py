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

from modelrail_inference.repository.batching import Padding
from modelrail_inference.repository.definition import ModelSettings
from modelrail_inference.runtime.session import Run, RunError, Session
from modelrail_inference.runtime.session_settings import CudaSettings
from modelrail_inference.runtime.warmup import smallest_inputs
from modelrail_inference.signature import Signature

_TURNS = 3
_LEAST_SECONDS = 0.001
_LEAST_RUNS = 2.0
"""A change that costs less than this many runs is no reason to record them."""


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
        for rows in (1, 2, 2):  # what is paid once for a size is no change
            seconds(rows)
        steady = min(seconds(2) for _ in range(_TURNS))
        changed = min(seconds(1) + seconds(2) for _ in range(_TURNS)) / 2
    except RunError:  # the sizes were a guess
        return 0.0
    cost = changed - steady
    return cost if cost > max(_LEAST_SECONDS, _LEAST_RUNS * steady) else 0.0


def recorded_sizes(settings: ModelSettings, max_batch_size: int) -> ModelSettings:
    """Returns the settings with runs of few batch sizes recorded: their own, or powers of two."""
    sizes = settings.batch_buckets
    if not sizes:
        powers = (1 << power for power in range(max_batch_size.bit_length()))
        sizes = tuple(sorted({*powers, max_batch_size}))
    cuda = replace(settings.session.cuda or CudaSettings(), records_graphs=True)
    return replace(settings, batch_buckets=sizes, session=replace(settings.session, cuda=cuda))
