"""The example of a model and data of one's own learns what it is about."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime

import modelrail
from modelrail.cli.specification import read_specification
from modelrail_trainer.handover.artifact import load_result, verify_files

EXAMPLES = Path(modelrail.__file__).parent / "examples"
SECONDS = 240.0


def test_the_rings_are_told_apart_by_the_served_graph(tmp_path: Path) -> None:
    spec = read_specification(EXAMPLES / "rings.yaml")
    (tmp_path / "spec.binpb").write_bytes(spec.SerializeToString())
    finished = subprocess.run(
        [
            *(sys.executable, "-W", "error", "-P", "-m", "modelrail_trainer.worker"),
            *(f"--user-code={EXAMPLES}", "--job-directory", str(tmp_path)),
        ],
        capture_output=True, text=True, timeout=SECONDS, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stdout + finished.stderr
    result = load_result(tmp_path)
    verify_files(result, tmp_path)
    (accuracy,) = [
        metric.value
        for metric in result.metrics
        if (metric.name, metric.split, metric.runtime) == ("accuracy", "test", "onnxruntime")
    ]
    assert accuracy > 0.95
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    points = np.array([[0.6, 0.8], [1.4, -1.4]], np.float32)
    (probabilities,) = session.run(["probabilities"], {"point": points})
    assert probabilities.argmax(axis=1).tolist() == [0, 1]
    assert result.signature.outputs[0].labels == ("inner", "outer")
