"""Python of a job's owner, for tests: what works, and what does what it must not."""

from __future__ import annotations

from pathlib import Path

NETS = """\
import torch
from torch import nn
from modelrail_trainer.user_code import ModelFacts
import layers


def build(facts: ModelFacts, width, dropout=0.0):
    return nn.Sequential(
        nn.Flatten(), nn.Linear(facts.row_shape[0], width), layers.Bend(), nn.Dropout(dropout),
        nn.Linear(width, facts.outputs),
    )


def good(facts):
    return nn.Linear(2, 2)


def fixed(facts):
    line = nn.Linear(facts.row_shape[0], facts.outputs)
    with torch.no_grad():
        line.weight[:] = 2.0
        line.bias[:] = 1.0
    return line


def tied(facts, dropout=0.0):
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    second.weight = first.weight
    return nn.Sequential(first, nn.Tanh(), nn.Dropout(dropout), second)


class Told(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.line = nn.Linear(2, 2)
        self.told = forward

    def forward(self, x):
        return self.told(self, x)


def wide(facts):
    return nn.Linear(2, 3)


def nan(facts):
    return Told(lambda self, x: self.line(x) / (x - x))


def nan_in_training(facts):
    return Told(lambda self, x: self.line(x) * (torch.nan if self.training else 1))


def fails_in_training(facts):
    def forward(self, x):
        if self.training:
            raise ValueError(f"no such thing at {__file__}")
        return self.line(x)

    return Told(forward)


def fails_without_a_frame(facts):
    return nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))


def leaves(facts, how):
    import os
    import sys
    if how == "exit":
        sys.exit(4)
    os._exit(5)


def leaves_in_training(facts):
    def forward(self, x):
        if self.training:
            import os
            os._exit(0)
        return self.line(x)

    return Told(forward)


def not_in_onnx(facts):
    return Told(lambda self, x: self.line(x) * torch.special.bessel_j0(x))


def branches(facts):
    return Told(lambda self, x: self.line(x) if x.sum() > 0 else x)


def noisy(facts):
    return Told(lambda self, x: self.line(x) + torch.rand_like(x))
"""

LAYERS = """\
from torch import nn


class Bend(nn.Module):
    def forward(self, x):
        return x.tanh()
"""

ROWS = """\
import os
import signal
import time
import numpy as np
from modelrail_trainer.user_code import CustomData, made_progress


def blobs(rows=90, **others):
    made_progress()
    generator = np.random.default_rng(3)
    targets = generator.integers(0, 2, rows)
    inputs = generator.normal(size=(rows, 2)) + 3 * targets[:, None]
    return CustomData(inputs=inputs.astype(np.float32), targets=targets, labels=["low", "high"],
                      input_name="place", meaning="place on the map", **others)


def line():
    x = np.linspace(-1, 1, 60, dtype=np.float32).reshape(-1, 1)
    pair = (x[:20], 2 * x[:20] + 1)
    return {"inputs": x, "targets": (2 * x + 1)[:, 0], "validation": (x[:20], pair[1][:, 0]),
            "test": (x[:20], pair[1][:, 0])}


def nan():
    rows = blobs()
    rows.inputs[7, 1] = np.nan
    return rows


def too_few_targets():
    rows = blobs()
    return {"inputs": rows.inputs, "targets": rows.targets[:80]}


def raises():
    raise ValueError(f"no such thing in {__file__}")


def multiplies():
    return np.zeros(3) @ np.zeros(4)


def leaves():
    os._exit(0)


def dies():
    raise KeyboardInterrupt


def opens(path):
    with open(path) as file:
        file.read()


def writes(path):
    with open(path, "w") as file:
        file.write("x")


def hangs():
    while True:
        time.sleep(1)


def hangs_and_hears_nothing():
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    hangs()
"""


def write_code(folder: Path) -> Path:
    """Makes a folder of user code, with the modules `nets`, `layers` and `rows`, and returns it."""
    folder.mkdir()
    for name, source in (("nets", NETS), ("layers", LAYERS), ("rows", ROWS)):
        (folder / f"{name}.py").write_text(source)
    return folder


def line_of(source: str, statement: str) -> int:
    """Returns the number of the one line, from 1, that holds a statement."""
    (number,) = [n for n, line in enumerate(source.splitlines(), 1) if statement in line]
    return number
