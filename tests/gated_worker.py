"""A worker that trains a line in two epochs, and stops between them while its gate is closed."""

from __future__ import annotations

from pathlib import Path

_PROGRAM = """\
import sys
from pathlib import Path
import numpy as np
from onnx import TensorProto, helper
from modelrail_trainer.handover import artifact
from modelrail_trainer.handover import journal
from modelrail_trainer.spec import Task
from modelrail_trainer.worker.__main__ import main
from modelrail_trainer.worker.export.model_file import describe
from modelrail_trainer.worker.export.reference import ReferenceCase, save_reference

if "--second-look" in sys.argv:
    sys.exit(main())
directory = Path(sys.argv[sys.argv.index("--job-directory") + 1])
gate = Path(GATE)


def figure(epoch):
    return journal.Metric(name="loss", value=0.5, split="train", epoch=epoch, runtime="pytorch")


with journal.JournalWriter(directory / "events.jsonl") as log:
    log.write(journal.PhaseEvent(journal.Phase.PREPARING))
    log.write(journal.PhaseEvent(journal.Phase.RUNNING))
    for epoch in (1, 2):
        log.write(journal.MetricsEvent(
            epoch=epoch, epochs=2, step=epoch, rows_per_second=1.0, metrics=(figure(epoch),)))
        if epoch == 1 and gate.exists():
            gate.open("rb").read()  # until the test opens and closes the other end
    log.write(journal.PhaseEvent(journal.Phase.EXPORTING))
    shape = ["batch", 1]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])], "line",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    x, y = (artifact.TensorSpec(name=n, datatype="FP32", shape=("batch", 1)) for n in "xy")
    describe(model, artifact.Signature((x,), (y,)), Task.REGRESSION)
    (directory / "model.onnx").write_bytes(model.SerializeToString())
    rows = np.arange(10, dtype=np.float32).reshape(-1, 1)
    save_reference({"model.onnx": [ReferenceCase({"x": rows}, {"y": rows})]}, directory)
    artifact.save_result(artifact.TrainingResult(
        files=(artifact.describe_file(directory, "model.onnx", "application/onnx"),),
        signature=artifact.Signature((x,), (y,)), metrics=(figure(0),),
        lineage=artifact.Lineage(dataset="line", dataset_sha256="0" * 64, spec_sha256="1" * 64,
            seed=7, packages={}),
        certificate=artifact.ExportCertificate(opset=20, absolute_tolerance=1e-4,
            relative_tolerance=1e-3, batch_sizes=(1, 2, 7),
            outputs=(artifact.OutputParity("y", 0.0),), rows=10)), directory)
    log.write(journal.FinishedEvent())
"""


def gated_worker(gate: Path) -> str:
    """Returns the program; where there is no pipe at `gate` it trains to the end at once."""
    return _PROGRAM.replace("GATE", repr(str(gate)))


def open_gate(gate: Path) -> None:
    """Lets the worker go on; blocks until it stands at the gate."""
    gate.open("wb").close()
