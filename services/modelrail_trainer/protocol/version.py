"""From a training result to the version that the registry takes."""

from __future__ import annotations

from modelrail.names import TrainingJobName
from modelrail.registry.v1 import registry_pb2
from modelrail_trainer.handover import artifact


def model_version_to_pb(
    result: artifact.TrainingResult, job: TrainingJobName, description: str
) -> registry_pb2.ModelVersion:
    """Returns the version that a result becomes. The same arguments give the same message."""
    lineage, certificate = result.lineage, result.certificate
    return registry_pb2.ModelVersion(
        files=[
            registry_pb2.File(
                path=file.path,
                sha256=file.sha256,
                size_bytes=file.size_bytes,
                media_type=file.media_type,
            )
            for file in result.files
        ],
        signature=registry_pb2.Signature(
            inputs=[_tensor_to_pb(tensor) for tensor in result.signature.inputs],
            outputs=[_tensor_to_pb(tensor) for tensor in result.signature.outputs],
        ),
        metrics=[
            registry_pb2.Metric(
                name=metric.name, value=metric.value, split=metric.split, runtime=metric.runtime
            )
            for metric in result.metrics
        ],
        lineage=registry_pb2.Lineage(
            training_job=str(job),
            dataset=lineage.dataset,
            dataset_sha256=lineage.dataset_sha256,
            spec_sha256=lineage.spec_sha256,
            seed=lineage.seed,
            packages=lineage.packages,
            hardware=lineage.hardware,
        ),
        certificate=registry_pb2.ExportCertificate(
            opset=certificate.opset,
            absolute_tolerance=certificate.absolute_tolerance,
            relative_tolerance=certificate.relative_tolerance,
            batch_sizes=certificate.batch_sizes,
            outputs=[
                registry_pb2.OutputParity(
                    name=output.name, max_absolute_difference=output.max_absolute_difference
                )
                for output in certificate.outputs
            ],
            rows=certificate.rows,
            tools=certificate.tools,
            attempts=[
                registry_pb2.ExportAttempt(method=attempt.method, failure=attempt.failure)
                for attempt in certificate.attempts
            ],
        ),
        description=description,
    )


def _tensor_to_pb(tensor: artifact.TensorSpec) -> registry_pb2.TensorSpec:
    value_range = tensor.value_range
    return registry_pb2.TensorSpec(
        name=tensor.name,
        datatype=tensor.datatype,
        shape=[
            registry_pb2.Dimension(symbol=size)
            if isinstance(size, str)
            else registry_pb2.Dimension(size=size)
            for size in tensor.shape
        ],
        meaning=tensor.meaning,
        value_range=None
        if value_range is None
        else registry_pb2.ValueRange(minimum=value_range.minimum, maximum=value_range.maximum),
        labels=tensor.labels,
    )
