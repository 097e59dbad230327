"""Memory that a model took is given back when the model goes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ACTIVATION_MIB = 100

# A process of its own: what the tests before this one took and gave back must not count.
CHILD = """
import json, sys
from pathlib import Path
import numpy as np, psutil
from modelrail_inference.model.definition import VersionDefinition
from modelrail_inference.runtime.loader import SessionLoader
from modelrail_inference.model.provider import Provider
from modelrail_inference.runtime.session import Run

loader = SessionLoader(Provider.CPU, 2, 64, 60.0)
resident = lambda: psutil.Process().memory_info().rss >> 20
seen = []
for number in range(20):
    model = loader.load(VersionDefinition("m", number, Path(sys.argv[1]), str(number)))
    model.session.run({"x": np.ones(1, np.float32)}, ["y"], Run())
    loaded = resident()
    model.close()
    seen.append((loaded, resident()))
print(json.dumps(seen))
"""


def test_memory_falls_when_a_model_goes_and_has_no_trend(tmp_path: Path) -> None:
    path = tmp_path / "large.onnx"
    onnx.save(large_activations(), path)
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    seen = json.loads(done.stdout)
    print("MiB resident while loaded and after, for each of 20 loads:", seen)
    for loaded, after in seen:
        # The arena holds at least two activations. Half of one is generous: measured was all.
        assert loaded - after > ACTIVATION_MIB / 2
    # What stays differs by some MiB of the allocator's own; a leak of one activation a load would
    # add 1900, one of a weight or a session's threads some MiB each.
    assert seen[-1][1] - seen[1][1] < ACTIVATION_MIB / 2


def large_activations() -> Any:
    nodes = [
        helper.make_node("Expand", ["x", "size"], ["a"]),
        helper.make_node("Exp", ["a"], ["b"]),
        helper.make_node("Sin", ["b"], ["c"]),
        helper.make_node("ReduceSum", ["c"], ["y"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [])],
        [numpy_helper.from_array(np.array([ACTIVATION_MIB << 18], np.int64), "size")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
