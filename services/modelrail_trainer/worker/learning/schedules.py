"""How the learning rate changes: closed formulas from the number of a step to a factor.

Nothing is remembered from step to step, so training that goes on at any step needs no state of its
schedule.
"""

from __future__ import annotations

import math

from modelrail_trainer import spec


def learning_rate_factor(
    schedule: spec.Schedule, step: int, *, steps_per_epoch: int, steps: int
) -> float:
    """Returns what the learning rate of a step is multiplied by.

    Args:
        schedule: The specification's.
        step: Number of the step, from 0.
        steps_per_epoch: Optimiser steps in an epoch.
        steps: Optimiser steps of the whole training.
    """
    warmup = schedule.warmup_steps
    # The first step is not 0: it would teach nothing. Goyal et al. (2017) for why to warm up.
    ramp = (step + 1) / warmup if step < warmup else 1.0
    match schedule.kind:
        case spec.ConstantSchedule():
            return ramp
        case spec.StepSchedule(every_epochs=every, factor=factor):
            return ramp * float(factor ** (step // steps_per_epoch // every))
        case spec.CosineSchedule(final_fraction=final):
            # Half a cosine wave after the warm-up (Loshchilov and Hutter, 2017, without restarts).
            progress = max(0, step - warmup) / max(1, steps - warmup)  # in [0, 1)
            return ramp * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress)))
