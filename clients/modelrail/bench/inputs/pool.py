"""The different requests of a run, made before it starts."""

from __future__ import annotations

import numpy as np

from modelrail.bench.inputs.generated import random_tensors
from modelrail.bench.inputs.layout import Layout
from modelrail.bench.inputs.recorded import recorded_tensors
from modelrail.bench.inputs.request import Payload, encode
from modelrail.bench.plan import BenchPlan, PlanError
from modelrail.bench.server.target import Target

__all__ = ["make_payloads"]

_RANDOM_REQUESTS = 32
_RANDOM_BYTES = 64 * 1024 * 1024


def make_payloads(plan: BenchPlan, target: Target) -> list[Payload]:
    """Makes the requests that a run sends in turn.

    Random ones are up to 32 different ones in at most 64 MiB, so that a cache of answers, and of
    the processor, does not see the same one all the time.

    Raises:
        PlanError: The plan's inputs do not fit the model.
    """
    if target.is_decoupled and not plan.streaming:
        raise PlanError(f"streaming: expected for {plan.model}, whose answers are streams")
    layout = Layout.of(plan, target)
    if plan.recording is not None:
        requests = recorded_tensors(plan.recording, layout)
    else:
        generator = np.random.default_rng((plan.seed, 0))
        requests = [random_tensors(layout, plan.ranges, generator)]
        size = sum(len(raw) for _, raw in requests[0])
        more = min(_RANDOM_REQUESTS, _RANDOM_BYTES // max(size, 1)) - 1
        requests += [random_tensors(layout, plan.ranges, generator) for _ in range(more)]
    return [
        encode(
            tensors,
            model=plan.model,
            version=plan.version,
            items=layout.items,
            all_replies=target.is_decoupled,
        )
        for tensors in requests
    ]
