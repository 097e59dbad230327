"""From protobuf requests to the trainer's values; what is wrong with a request is found here."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from modelrail.names import InvalidName, TrainingJobName
from modelrail.trainer.v1 import trainer_pb2 as pb
from modelrail_server.errors import FieldViolation, InvalidArgument
from modelrail_trainer.jobs.job import NewJob
from modelrail_trainer.objects.named import NamedObjects, named_objects
from modelrail_trainer.protocol.pagination import number_from_token
from modelrail_trainer.protocol.run_policy import (
    MAX_PROCESSES,
    run_policy_from_pb,
    violations_of,
)
from modelrail_trainer.protocol.specification import spec_from_pb
from modelrail_trainer.rules import validation
from modelrail_trainer.spec import (
    Dataset,
    IdxFiles,
    ImageDataset,
    ImageFolder,
    LinesDataset,
    Split,
    TableDataset,
    TrainingJobSpec,
    entry_points_of,
)

_SPEC_PATH = "training_job.spec"
_SHOWN_CHARACTERS = 80
_DEFAULT_PAGE_SIZE = 50
_MAX_PAGE_SIZE = 1000


def new_job_from_pb(request: pb.CreateTrainingJobRequest) -> tuple[NewJob, str]:
    """Reads and checks a request for a new job; returns the job and the request id.

    Raises:
        InvalidArgument: Names every wrong field, and every field that this trainer does not know.
    """
    message = request.training_job.spec
    violations = list(unknown_in(request))
    specification = spec_from_pb(message)
    violations += [
        FieldViolation(f"{_SPEC_PATH}.{field}", description)
        for field, description in validation.validate(specification)
    ]
    violations += violations_of(request.training_job)
    violations += _request_id_violations(request.request_id)
    if violations:
        raise InvalidArgument(
            "; ".join(f"{violation.field}: {violation.description}" for violation in violations),
            violations=violations,
        )
    encoded = message.SerializeToString(deterministic=True)
    # `1F…` and `1f…` are the same UUID.
    request_id = request.request_id.lower()
    new = NewJob(
        encoded,
        specification.publication,
        data_paths=_file_paths(specification, f"{_SPEC_PATH}."),
        data_folders={
            field: folder.path
            for field, folder in _image_folders(specification, f"{_SPEC_PATH}.").items()
        },
        entry_points={
            f"{_SPEC_PATH}.{field}": entry_point
            for field, entry_point in entry_points_of(specification).items()
        },
        policy=run_policy_from_pb(request.training_job),
    )
    return new, request_id


def objects_of(specification: bytes) -> NamedObjects:
    """Returns what an encoded specification names in object stores, by the field that names it."""
    spec = spec_from_pb(pb.TrainingJobSpec.FromString(specification))
    return named_objects(_file_paths(spec, ""), _image_folders(spec, ""))


def _file_paths(specification: TrainingJobSpec, prefix: str) -> dict[str, str]:
    of_data = _data_paths(specification.dataset, f"{prefix}dataset")
    return of_data | split_paths(specification.split, prefix)


def _data_paths(dataset: Dataset, path: str) -> dict[str, str]:
    match dataset:
        case TableDataset(paths=paths):
            return {f"{path}.table.paths[{position}]": file for position, file in enumerate(paths)}
        case LinesDataset(paths=paths):
            return {f"{path}.lines.paths[{position}]": file for position, file in enumerate(paths)}
        case ImageDataset(source=IdxFiles() as idx):
            files = {
                "images": idx.images,
                "labels": idx.labels,
                "test_images": idx.test_images,
                "test_labels": idx.test_labels,
            }
            return {f"{path}.images.idx.{field}": file for field, file in files.items() if file}
        case _:
            return {}


def split_paths(split: Split, prefix: str = "") -> dict[str, str]:
    """Returns the files that a split names, by the field that names them."""
    return {
        f"{prefix}split.{field}[{position}]": file
        for field in ("validation_paths", "test_paths")
        for position, file in enumerate(getattr(split, field))
    }


def _image_folders(specification: TrainingJobSpec, prefix: str) -> dict[str, ImageFolder]:
    match specification.dataset:
        case ImageDataset(source=ImageFolder() as folder):
            return {f"{prefix}dataset.images.folder.path": folder}
        case _:
            return {}


def resume_from_pb(request: pb.ResumeTrainingJobRequest) -> tuple[TrainingJobName, int]:
    """Reads a request to go on; returns the job and how many processes it wants, 0 for as before.

    Raises:
        InvalidArgument: One of them is malformed.
    """
    if not 0 <= request.processes <= MAX_PROCESSES:
        raise InvalidArgument.field(
            "processes",
            f"expected a number from 1 to {MAX_PROCESSES}, or 0 for as many as before, "
            f"got {request.processes}",
        )
    return job_name(request.name), request.processes


def clone_from_pb(request: pb.CloneTrainingJobRequest) -> tuple[TrainingJobName, str]:
    """Reads a request for a clone; returns the job to clone and the request id.

    Raises:
        InvalidArgument: One of them is malformed.
    """
    for violation in _request_id_violations(request.request_id):
        raise InvalidArgument.field(violation.field, violation.description)
    return job_name(request.name), request.request_id.lower()


def _request_id_violations(request_id: str) -> Iterator[FieldViolation]:
    if request_id and not _is_uuid4(request_id):
        got = repr(request_id[:_SHOWN_CHARACTERS])
        yield FieldViolation("request_id", f"expected a UUID4, got {got}")


def _is_uuid4(text: str) -> bool:
    try:
        parsed = uuid.UUID(text)
    except ValueError:
        return False
    return parsed.version == 4 and str(parsed) == text.lower()


def unknown_in(message: Message, path: str = "") -> Iterator[FieldViolation]:
    """Yields what the sender knows, at any depth, and this trainer does not: fields and values."""
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
        below = f"{path}.{field.name}" if path else field.name
        if field.enum_type is not None and not field.is_repeated:
            if value not in field.enum_type.values_by_number:
                known = ", ".join(field.enum_type.values_by_name)
                yield FieldViolation(below, f"expected one of: {known}; got the number {value}")
        elif field.type != FieldDescriptor.TYPE_MESSAGE:
            continue
        elif isinstance(value, Message):
            yield from unknown_in(value, below)
        elif isinstance(value, Mapping):  # a map
            for key, item in value.items():
                if isinstance(item, Message):
                    yield from unknown_in(item, f"{below}[{key[:_SHOWN_CHARACTERS]!r}]")
        else:
            for position, item in enumerate(value):
                yield from unknown_in(item, f"{below}[{position}]")


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
    return size, number_from_token(request.page_token)
