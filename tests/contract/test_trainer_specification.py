"""Descriptions of a specification against the messages that they are read from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from enum import StrEnum
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

import pytest
from google.protobuf.descriptor import Descriptor, EnumDescriptor

from modelrail.trainer.v1 import trainer_pb2 as pb
from modelrail_trainer import spec
from modelrail_trainer.encodings import ENCODINGS
from modelrail_trainer.optimizers import OPTIMIZERS
from modelrail_trainer.preprocessing import STEPS
from modelrail_trainer.protocol.specification import spec_from_pb

# What a description knows beyond its message: where the files of a folder of images really are.
NOT_SENT = {("ImageFolder", "readable")}
# Descriptions that are no message: a bundled data set is sent as its name.
NO_MESSAGE = {"BundledDataset": "bundled"}


def described(kind: type = spec.TrainingJobSpec) -> Iterator[type]:
    """Yields a description and all below it."""
    yield kind
    for hint in get_type_hints(kind).values():
        for one in alternatives(hint):
            if is_dataclass(one) and isinstance(one, type):
                yield from described(one)


def alternatives(hint: Any) -> tuple[Any, ...]:
    """The types that a value, or an item of it, can have."""
    if get_origin(hint) is tuple:
        return alternatives(get_args(hint)[0])
    return tuple(one for one in get_args(hint) or (hint,) if one is not NoneType)


MESSAGES: Mapping[str, Descriptor] = dict(pb.DESCRIPTOR.message_types_by_name)
DESCRIPTIONS = sorted(set(described()), key=lambda kind: kind.__name__)


@pytest.mark.parametrize(
    "kind",
    [kind for kind in DESCRIPTIONS if kind.__name__ not in NO_MESSAGE],
    ids=lambda k: k.__name__,
)
def test_a_description_has_the_fields_of_its_message(kind: type) -> None:
    message = MESSAGES[kind.__name__]
    inside = {field.name for oneof in message.oneofs for field in oneof.fields}
    sent = {field.name for field in message.fields} - inside | {one.name for one in message.oneofs}
    known = {field.name for field in fields(kind)} - {
        name for description, name in NOT_SENT if description == kind.__name__
    }
    assert known == sent


def oneofs(kind: type) -> Iterator[tuple[Descriptor, tuple[type, ...]]]:
    """Yields the oneofs below a description: their message, and the descriptions to choose from."""
    for name, hint in get_type_hints(kind).items():
        choices: tuple[type, ...] = tuple(filter(is_dataclass, alternatives(hint)))
        if len(choices) < 2:
            continue
        message: Any = MESSAGES[kind.__name__]
        if name not in message.oneofs_by_name:  # in a message around nothing but the oneof
            message = message.fields_by_name[name].message_type
        yield message, choices


ONEOFS = [pair for kind in DESCRIPTIONS for pair in oneofs(kind)]


def test_every_oneof_is_found() -> None:
    names = {message.name for message, _ in ONEOFS}
    assert names == {
        "Dataset", "ImageDataset", "Loss", "ModelSpec", "Optimizer", "Preprocessing", "Schedule",
        "TableColumn", "TextEncoding",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("message", "choices"), ONEOFS, ids=[message.name for message, _ in ONEOFS]
)
def test_every_case_of_a_oneof_has_a_description(
    message: Descriptor, choices: tuple[type, ...]
) -> None:
    (oneof,) = message.oneofs
    cases = {(field.message_type or field).name for field in oneof.fields}
    assert {NO_MESSAGE.get(one.__name__, one.__name__) for one in choices} == cases


@pytest.mark.parametrize(
    ("message", "kinds"),
    [
        ("ModelSpec", spec.MODELS),
        ("Loss", spec.LOSSES),
        ("Optimizer", OPTIMIZERS),
        ("Preprocessing", STEPS),
        ("TableColumn", ENCODINGS),
    ],
)
def test_messages_of_errors_use_the_names_of_the_wire(
    message: str, kinds: Mapping[str, type]
) -> None:
    (oneof,) = MESSAGES[message].oneofs
    sent = {field.name: (field.message_type or field).name for field in oneof.fields}
    assert {name: kind.__name__ for name, kind in kinds.items()} == sent


def enumerations() -> Iterator[tuple[Any, type[StrEnum]]]:
    for kind in DESCRIPTIONS:
        hints = get_type_hints(kind)
        for field in fields(kind):
            for one in alternatives(hints[field.name]):
                if isinstance(one, type) and issubclass(one, StrEnum):
                    yield MESSAGES[kind.__name__].fields_by_name[field.name].enum_type, one


@pytest.mark.parametrize(
    ("sent", "known"), list(enumerations()), ids=lambda value: getattr(value, "name", "")
)
def test_every_value_of_an_enumeration_is_known(sent: EnumDescriptor, known: type[StrEnum]) -> None:
    prefix = sent.values_by_number[0].name.removesuffix("UNSPECIFIED")
    named = {value.name.removeprefix(prefix).lower() for value in sent.values if value.number}
    # What is meant when nothing is said need not have a name on the wire.
    assert named <= set(known)
    assert len(set(known) - named) <= 1


def test_every_case_is_read_with_its_values() -> None:
    message = pb.TrainingJobSpec(seed=3, precision=pb.TrainingJobSpec.PRECISION_MIXED_BF16)
    message.dataset.bundled = "digits"
    message.split.validation_paths.extend(["a.csv", "b.csv"])
    message.preprocessing.add().min_max_scale.SetInParent()
    message.preprocessing.add()
    message.model.mlp.hidden_units.extend([3, 4])
    message.schedule.cosine.final_fraction = 0.5
    message.schedule.warmup_steps = 7
    read = spec_from_pb(message)
    assert read.dataset == spec.BundledDataset(name="digits")
    assert read.split.validation_paths == ("a.csv", "b.csv")
    assert read.preprocessing == (spec.MinMaxScale(), None)
    assert read.model == spec.MlpModel(hidden_units=(3, 4))
    assert read.schedule == spec.Schedule(
        kind=spec.CosineSchedule(final_fraction=0.5), warmup_steps=7
    )
    assert (read.seed, read.precision) == (3, spec.Precision.MIXED_BF16)
    assert (read.loss, read.optimizer) == (None, None)
    assert read.device is spec.Device.ANY
