"""What the process of a job hands over, y = 2 x, and ways in which it may be forged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from modelrail_trainer.handover.artifact import (
    MODEL_NAME,
    ONNX_MEDIA_TYPE,
    ExportCertificate,
    Lineage,
    OutputParity,
    ResultFile,
    Signature,
    TensorSpec,
    TrainingResult,
    describe_file,
    save_result,
)
from modelrail_trainer.handover.journal import Metric
from modelrail_trainer.spec import Task
from modelrail_trainer.worker.export.model_file import describe
from modelrail_trainer.worker.export.reference import ReferenceCase, save_reference

SIGNATURE = Signature(
    (TensorSpec(name="x", datatype="FP32", shape=("batch", 1)),),
    (TensorSpec(name="y", datatype="FP32", shape=("batch", 1)),),
)
CERTIFICATE = ExportCertificate(
    opset=20,
    absolute_tolerance=1e-4,
    relative_tolerance=1e-3,
    batch_sizes=(1, 2, 7),
    outputs=(OutputParity("y", 0.0),),
    rows=8,
)
ROWS = np.arange(10, dtype=np.float32).reshape(-1, 1)


def bare_result(*files: ResultFile) -> TrainingResult:
    """Returns a result of some files that says as little of them as it may."""
    return TrainingResult(
        files=files,
        signature=Signature((), ()),
        metrics=(),
        lineage=Lineage(dataset="d", dataset_sha256="", spec_sha256="", seed=1, packages={}),
        certificate=replace(CERTIFICATE, outputs=()),
    )


def doubling(factor: float = 2.0) -> onnx.ModelProto:
    """Returns the graph of y = factor · x, as the exporter describes one."""
    shape: list[str | int | None] = ["batch", 1]
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "factor"], ["y"])],
        "line",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(np.array([factor], np.float32), "factor")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    describe(model, SIGNATURE, Task.REGRESSION)
    return model


@dataclass
class HandedOver:
    """All of it, before it is written.

    Attributes:
        model: What the graph is.
        case: What PyTorch is said to make of which rows; None: nothing is said.
        signature: What the graph is said to look like.
        certificate: What is said to have been compared.
        more_files: Other files of the version, by path.
    """

    model: onnx.ModelProto
    case: ReferenceCase | None
    signature: Signature = SIGNATURE
    certificate: ExportCertificate = CERTIFICATE
    more_files: tuple[tuple[str, bytes], ...] = ()

    @classmethod
    def honest(cls) -> HandedOver:
        """Returns what a job that forges nothing hands over."""
        return cls(doubling(), ReferenceCase({"x": ROWS}, {"y": 2 * ROWS}))

    def write(self, directory: Path) -> TrainingResult:
        """Writes it where a job does, with digests that are right, and returns the result."""
        (directory / MODEL_NAME).write_bytes(self.model.SerializeToString())
        for path, content in self.more_files:
            (directory / path).write_bytes(content)
        if self.case is not None:
            save_reference({MODEL_NAME: [self.case]}, directory)
        files = (MODEL_NAME, *(path for path, _ in self.more_files))
        result = TrainingResult(
            files=tuple(describe_file(directory, path, ONNX_MEDIA_TYPE) for path in files),
            signature=self.signature,
            metrics=(Metric(name="mse", value=0.0, split="test", epoch=0, runtime="onnxruntime"),),
            lineage=Lineage(
                dataset="line", dataset_sha256="0" * 64, spec_sha256="1" * 64, seed=7, packages={}
            ),
            certificate=self.certificate,
        )
        save_result(result, directory)
        return result


Forgery = Callable[[HandedOver], None]


def another_graph(forged: HandedOver) -> None:
    """The graph computes something else than the reference says."""
    forged.model = doubling(3.0)


def a_path_in_the_graph(forged: HandedOver) -> None:
    """The graph tells where it was made."""
    forged.model.metadata_props.add(key="note", value="/home/secret/path.py")


def another_reference(forged: HandedOver) -> None:
    """The reference is not what anybody would get from the graph."""
    forged.case = ReferenceCase({"x": ROWS}, {"y": 2 * ROWS + (ROWS == 7)})


def smaller_differences(forged: HandedOver) -> None:
    """The graph differs, by what is allowed, and the certificate says that it does not."""
    forged.model = doubling(2.001)


def claims(**fields: object) -> Forgery:
    """Returns a forgery of fields of the certificate."""

    def forge(forged: HandedOver) -> None:
        forged.certificate = replace(forged.certificate, **fields)  # type: ignore[arg-type]

    return forge
