"""Between protobuf messages and the trainer's own values; the only place that knows both."""

from __future__ import annotations

import base64
import binascii
import uuid
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from google.protobuf.unknown_fields import UnknownFieldSet
from modelrail.names import InvalidName, TrainingJobName
from modelrail.registry.v1 import registry_pb2
from modelrail.trainer.v1 import trainer_pb2 as pb
from modelrail_server.errors import FieldViolation, InvalidArgument

from modelrail_trainer import artifact, spec
from modelrail_trainer.jobs.job import (
    Job,
    JobError,
    JobEvent,
    JobPage,
    LogLine,
    MetricReport,
    NewJob,
    Progress,
    StateChange,
)
from modelrail_trainer.jobs.state import JobState
from modelrail_trainer.journal import Metric

_SPEC_PATH = "training_job.spec"
_SHOWN_CHARACTERS = 80
_DEFAULT_PAGE_SIZE = 50
_MAX_PAGE_SIZE = 1000
_PAGE_TOKEN_PREFIX = "trainingJobs<"  # noqa: S105 - no password


# Specifications


def spec_from_pb(message: pb.TrainingJobSpec) -> spec.TrainingJobSpec:
    """Reads a specification as it stands; `spec.validate` tells whether it is a good one."""
    split = message.split
    return spec.TrainingJobSpec(
        display_name=message.display_name,
        dataset=_dataset(message.dataset),
        split=spec.Split(
            validation_fraction=split.validation_fraction,
            test_fraction=split.test_fraction,
            seed=split.seed,
        ),
        preprocessing=tuple(_preprocessing(step) for step in message.preprocessing),
        model=_model(message.model),
        loss=_loss(message.loss),
        optimizer=_optimizer(message.optimizer),
        epochs=message.epochs,
        batch_size=message.batch_size,
        seed=message.seed,
        log_every_epochs=message.log_every_epochs,
        publication=spec.Publication(
            model=message.publication.model,
            alias=message.publication.alias,
            description=message.publication.description,
        ),
    )


def _dataset(message: pb.Dataset) -> spec.Dataset:
    match message.WhichOneof("source"):
        case "bundled":
            return spec.BundledDataset(name=message.bundled)
        case "line":
            line = message.line
            return spec.LineDataset(
                slope=line.slope,
                intercept=line.intercept,
                points=line.points,
                minimum_x=line.minimum_x,
                maximum_x=line.maximum_x,
                noise_stddev=line.noise_stddev,
            )
        case _:
            return None


def _preprocessing(message: pb.Preprocessing) -> spec.Preprocessing:
    match message.WhichOneof("step"):
        case "standardize":
            return spec.Standardize()
        case "min_max_scale":
            return spec.MinMaxScale()
        case _:
            return None


def _model(message: pb.ModelSpec) -> spec.Model:
    match message.WhichOneof("architecture"):
        case "linear":
            return spec.LinearModel()
        case "mlp":
            return spec.MlpModel(hidden_units=tuple(message.mlp.hidden_units))
        case "cnn":
            return spec.CnnModel(
                channels=tuple(message.cnn.channels),
                hidden_units=message.cnn.hidden_units,
                dropout=message.cnn.dropout,
            )
        case _:
            return None


def _loss(message: pb.Loss) -> spec.Loss:
    match message.WhichOneof("kind"):
        case "mse":
            return spec.MeanSquaredError()
        case "cross_entropy":
            return spec.CrossEntropy()
        case _:
            return None


def _optimizer(message: pb.Optimizer) -> spec.Optimizer:
    match message.WhichOneof("kind"):
        case "gradient_descent":
            return spec.GradientDescent(learning_rate=message.gradient_descent.learning_rate)
        case "sgd":
            return spec.Sgd(learning_rate=message.sgd.learning_rate, momentum=message.sgd.momentum)
        case "adam":
            adam = message.adam
            return spec.Adam(
                learning_rate=adam.learning_rate,
                beta1=adam.beta1,
                beta2=adam.beta2,
                epsilon=adam.epsilon,
            )
        case _:
            return None


# Requests


def new_job_from_pb(request: pb.CreateTrainingJobRequest) -> tuple[NewJob, str]:
    """Reads and checks a request for a new job; returns the job and the request id.

    Raises:
        InvalidArgument: Names every wrong field, and every field that this trainer does not know.
    """
    message = request.training_job.spec
    violations = list(_unknown_fields(request))
    specification = spec_from_pb(message)
    violations += [
        FieldViolation(f"{_SPEC_PATH}.{field}", description)
        for field, description in spec.validate(specification)
    ]
    if request.request_id and not _is_uuid4(request.request_id):
        got = repr(request.request_id[:_SHOWN_CHARACTERS])
        violations.append(FieldViolation("request_id", f"expected a UUID4, got {got}"))
    if violations:
        raise InvalidArgument(
            "; ".join(f"{violation.field}: {violation.description}" for violation in violations),
            violations=violations,
        )
    encoded = message.SerializeToString(deterministic=True)
    # `1F…` and `1f…` are the same UUID.
    return NewJob(encoded, specification.publication), request.request_id.lower()


def _is_uuid4(text: str) -> bool:
    try:
        parsed = uuid.UUID(text)
    except ValueError:
        return False
    return parsed.version == 4 and str(parsed) == text.lower()


def _unknown_fields(message: Message, path: str = "") -> Iterator[FieldViolation]:
    """Yields the fields, at any depth, that the sender knows and this trainer does not."""
    unknown_fields = UnknownFieldSet(message)
    for index in range(len(unknown_fields)):
        unknown = unknown_fields[index]
        where = f"{path}.{unknown.field_number}" if path else str(unknown.field_number)
        yield FieldViolation(
            where,
            f"expected a field of {message.DESCRIPTOR.full_name}, got the unknown field "
            f"number {unknown.field_number}",
        )
    for field, value in message.ListFields():
        if field.type != FieldDescriptor.TYPE_MESSAGE:
            continue
        below = f"{path}.{field.name}" if path else field.name
        if isinstance(value, Message):
            yield from _unknown_fields(value, below)
        else:
            for position, item in enumerate(value):
                yield from _unknown_fields(item, f"{below}[{position}]")


def job_name(text: str) -> TrainingJobName:
    """Reads the field `name` of a request.

    Raises:
        InvalidArgument: It is no name of a training job.
    """
    try:
        return TrainingJobName.parse(text)
    except InvalidName as error:
        raise InvalidArgument.field("name", str(error)) from None


def after_sequence_from_pb(request: pb.WatchTrainingJobRequest) -> int:
    """Reads where a watch begins.

    Raises:
        InvalidArgument: It is negative.
    """
    if request.after_sequence < 0:
        raise InvalidArgument.field(
            "after_sequence", f"expected a number from 0, got {request.after_sequence}"
        )
    return request.after_sequence


def page_from_pb(request: pb.ListTrainingJobsRequest) -> tuple[int, int | None]:
    """Reads the size of a page, and the number that its jobs lie below; None for the first page.

    Raises:
        InvalidArgument: The size is negative, or the token is none of ours.
    """
    if request.page_size < 0:
        raise InvalidArgument.field(
            "page_size", f"expected a number from 0, got {request.page_size}"
        )
    size = min(request.page_size or _DEFAULT_PAGE_SIZE, _MAX_PAGE_SIZE)
    return size, _number_from_token(request.page_token)


def _number_from_token(token: str) -> int | None:
    if not token:
        return None
    try:
        text = base64.b64decode(token, altchars=b"-_", validate=True).decode()
        if not text.startswith(_PAGE_TOKEN_PREFIX):
            raise ValueError(text)
        number = int(text.removeprefix(_PAGE_TOKEN_PREFIX))
        if not 0 < number < 1 << 63:
            raise ValueError(text)
    except (ValueError, binascii.Error):
        raise InvalidArgument.field(
            "page_token", "expected the next_page_token of another page, got something else"
        ) from None
    return number


# Answers


def job_to_pb(job: Job) -> pb.TrainingJob:
    """Returns the resource."""
    return pb.TrainingJob(
        name=str(job.name),
        uid=job.uid,
        spec=pb.TrainingJobSpec.FromString(job.specification),
        state=_state_to_pb(job.state),
        error=_error_to_pb(job.error),
        progress=_progress_to_pb(job.progress),
        metrics=_metrics_to_pb(job.metrics),
        model_version=job.model_version,
        attempt=job.attempt,
        create_time=_time_to_pb(job.create_time),
        start_time=_time_to_pb(job.start_time),
        end_time=_time_to_pb(job.end_time),
    )


def page_to_pb(page: JobPage) -> pb.ListTrainingJobsResponse:
    """Returns a page of jobs."""
    token = ""
    if page.next_number is not None:
        token = base64.urlsafe_b64encode(
            f"{_PAGE_TOKEN_PREFIX}{page.next_number}".encode()
        ).decode()
    return pb.ListTrainingJobsResponse(
        training_jobs=[job_to_pb(job) for job in page.jobs], next_page_token=token
    )


def event_to_pb(event: JobEvent) -> pb.WatchTrainingJobResponse:
    """Returns one event of a watch."""
    message = pb.TrainingJobEvent(
        sequence=event.sequence, create_time=_time_to_pb(event.create_time)
    )
    match event.happening:
        case StateChange(old, new, error):
            message.state_change.CopyFrom(
                pb.StateChange(
                    old_state=_state_to_pb(old),
                    new_state=_state_to_pb(new),
                    error=_error_to_pb(error),
                )
            )
        case MetricReport(progress, metrics):
            message.metric_report.CopyFrom(
                pb.MetricReport(progress=_progress_to_pb(progress), metrics=_metrics_to_pb(metrics))
            )
        case LogLine(text):
            message.log_line.CopyFrom(pb.LogLine(text=text))
    return pb.WatchTrainingJobResponse(event=message)


def _state_to_pb(state: JobState | None) -> str:
    return f"STATE_{state.name if state else 'UNSPECIFIED'}"


def _error_to_pb(error: JobError | None) -> pb.JobError | None:
    if error is None:
        return None
    return pb.JobError(reason=f"REASON_{error.reason.name}", message=error.message)


def _progress_to_pb(progress: Progress | None) -> pb.Progress | None:
    if progress is None:
        return None
    return pb.Progress(
        epoch=progress.epoch,
        epochs=progress.epochs,
        step=progress.step,
        rows_per_second=progress.rows_per_second,
    )


def _metrics_to_pb(metrics: Iterable[Metric]) -> list[pb.Metric]:
    return [
        pb.Metric(
            name=metric.name,
            value=metric.value,
            split=metric.split,
            epoch=metric.epoch,
            runtime=metric.runtime,
        )
        for metric in metrics
    ]


def _time_to_pb(time: datetime | None) -> Timestamp | None:
    if time is None:
        return None
    message = Timestamp()
    message.FromDatetime(time.astimezone(UTC))
    return message


# Results, as the registry takes them


def model_version_to_pb(
    result: artifact.TrainingResult,
    files: Sequence[registry_pb2.File],
    job: TrainingJobName,
    description: str,
) -> registry_pb2.ModelVersion:
    """Returns the version that a result becomes. The same arguments give the same message."""
    lineage, certificate = result.lineage, result.certificate
    return registry_pb2.ModelVersion(
        files=files,
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
