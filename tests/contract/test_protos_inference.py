"""The Open Inference Protocol: on the wire Triton's, in Python no neighbour's."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from modelrail.oip.reflection import PUBLIC_SERVICE, public_file_descriptors
from modelrail.oip.v2 import grpc_service_pb2, model_config_pb2

PROTOS = Path(__file__).parents[2] / "protos"
OURS: dict[str, type[Message]] = {
    name: getattr(module, name)
    for module in (grpc_service_pb2, model_config_pb2)
    for name in module.DESCRIPTOR.message_types_by_name
}

# The Open Inference Protocol has this field, Triton does not. A client that does not know it skips
# it. It is the only difference.
EXTRA = {
    "inference.ModelMetadataResponse.properties",
    "inference.ModelMetadataResponse.PropertiesEntry",
    "inference.ModelMetadataResponse.PropertiesEntry.key",
    "inference.ModelMetadataResponse.PropertiesEntry.value",
}


@pytest.fixture
def triton() -> tuple[Any, Any]:
    """The generated modules of tritonclient: the service, the model configuration."""
    reason = "tritonclient[grpc] is not installed"
    return (
        pytest.importorskip("tritonclient.grpc.service_pb2", reason=reason),
        pytest.importorskip("tritonclient.grpc.model_config_pb2", reason=reason),
    )


def facts(files: Iterable[FileDescriptorProto]) -> dict[str, tuple[object, ...]]:
    """Everything that the wire depends on, by full name."""
    found: dict[str, tuple[object, ...]] = {}
    for file in files:
        found.update(_enum_facts(file.enum_type, file.package))
        for message in file.message_type:
            found.update(_message_facts(message, file.package))
        for service in file.service:
            for rpc in service.method:
                found[f"{file.package}.{service.name}/{rpc.name}"] = (
                    rpc.input_type,
                    rpc.output_type,
                    rpc.client_streaming,
                    rpc.server_streaming,
                )
    return found


def _message_facts(
    message: DescriptorProto, scope: str
) -> Iterator[tuple[str, tuple[object, ...]]]:
    name = f"{scope}.{message.name}"
    yield name, (message.options.map_entry,)
    for field in message.field:
        yield (
            f"{name}.{field.name}",
            (
                field.number,
                FieldDescriptorProto.Type.Name(field.type),
                FieldDescriptorProto.Label.Name(field.label),
                field.type_name,
                message.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else "",
                field.proto3_optional,
                field.options.packed if field.options.HasField("packed") else None,
            ),
        )
    for nested in message.nested_type:
        yield from _message_facts(nested, name)
    yield from _enum_facts(message.enum_type, name)


def _enum_facts(
    enums: Iterable[EnumDescriptorProto], scope: str
) -> Iterator[tuple[str, tuple[object, ...]]]:
    for enum in enums:
        yield f"{scope}.{enum.name}", (enum.options.allow_alias,)
        for value in enum.value:
            yield f"{scope}.{enum.name}.{value.name}", (value.number,)


def test_every_name_number_type_and_rpc_is_tritons(triton: tuple[Any, Any]) -> None:
    theirs = facts(FileDescriptorProto.FromString(file.DESCRIPTOR.serialized_pb) for file in triton)
    ours = facts(public_file_descriptors())

    assert ours.keys() - theirs.keys() == EXTRA
    assert {name: fact for name, fact in ours.items() if name not in EXTRA} == theirs


def test_the_service_has_20_rpcs_and_one_streams_both_ways() -> None:
    rpcs = {
        name: fact[2:] for name, fact in facts(public_file_descriptors()).items() if "/" in name
    }

    assert len(rpcs) == 20
    assert {name: flags for name, flags in rpcs.items() if any(flags)} == {
        f"{PUBLIC_SERVICE}/ModelStreamInfer": (True, True)
    }


def fill(message: Message, choice: int) -> Message:
    """Set every field, and in each oneof the one that the number `choice` falls on."""
    for field in message.DESCRIPTOR.fields:
        oneof = field.containing_oneof.fields if field.containing_oneof else [field]
        chosen = oneof[choice % len(oneof)].name == field.name
        if chosen and f"inference.{message.DESCRIPTOR.name}.{field.name}" not in EXTRA:
            _set(message, field, choice)
    return message


def _set(message: Message, field: Any, choice: int) -> None:
    value = getattr(message, field.name)
    kind = field.message_type
    if kind and kind.GetOptions().map_entry:
        key = _scalar(kind.fields_by_name["key"])
        if kind.fields_by_name["value"].message_type:
            fill(value[key], choice)
        else:
            value[key] = _scalar(kind.fields_by_name["value"])
    elif kind and field.is_repeated:
        fill(value.add(), choice)
    elif kind:
        value.SetInParent()
        fill(value, choice)
    elif field.is_repeated:
        value.extend([_scalar(field), _scalar(field)])
    else:
        setattr(message, field.name, _scalar(field))


def _scalar(field: Any) -> object:
    values: dict[int, object] = {
        FieldDescriptor.CPPTYPE_BOOL: True,
        FieldDescriptor.CPPTYPE_DOUBLE: -2.5,
        FieldDescriptor.CPPTYPE_FLOAT: 1.5,
        FieldDescriptor.CPPTYPE_INT32: -(2**31),
        FieldDescriptor.CPPTYPE_INT64: -(2**63),
        FieldDescriptor.CPPTYPE_UINT32: 2**32 - 1,
        FieldDescriptor.CPPTYPE_UINT64: 2**64 - 1,
        FieldDescriptor.CPPTYPE_STRING: "größe",
    }
    if field.enum_type:
        return field.enum_type.values[-1].number
    if field.type == FieldDescriptor.TYPE_BYTES:
        return b"\x00\xff"
    return values[field.cpp_type]


@pytest.mark.parametrize("name", sorted(OURS))
def test_a_message_of_either_side_is_read_whole_by_the_other(
    name: str, triton: tuple[Any, Any]
) -> None:
    service, model_config = triton
    theirs: type[Message] = getattr(service, name, None) or getattr(model_config, name)

    for sender, receiver in ((OURS[name], theirs), (theirs, OURS[name])):
        for choice in range(5):  # The largest oneof has five fields.
            sent = fill(sender(), choice)
            received = receiver.FromString(sent.SerializeToString())
            assert MessageToDict(received) == MessageToDict(sent)


def test_tritons_client_skips_the_properties_of_model_metadata(triton: tuple[Any, Any]) -> None:
    sent = grpc_service_pb2.ModelMetadataResponse(name="digits", properties={"provider": "cpu"})

    received = triton[0].ModelMetadataResponse.FromString(sent.SerializeToString())

    assert received.name == "digits"
    assert grpc_service_pb2.ModelMetadataResponse.FromString(received.SerializeToString()) == sent


OUR_IMPORT = "from modelrail.oip.v2 import grpc_service_pb2_grpc, grpc_service_pb2 as ours"
OUR_USE = """
from google.protobuf.descriptor_pool import DescriptorPool
from modelrail.oip.reflection import public_file_descriptors
pool = DescriptorPool()
for file in public_file_descriptors():
    pool.Add(file)
assert pool.FindServiceByName("inference.GRPCInferenceService")
sent = ours.ServerLiveResponse(live=True).SerializeToString()
assert ours.ServerLiveResponse.FromString(sent).live
"""
TRITON = "import tritonclient.grpc"
# As kserve ships it: the package of the protocol, in a file of another name.
KSERVE = """
from google.protobuf import descriptor_pb2, descriptor_pool
file = descriptor_pb2.FileDescriptorProto(
    name="grpc_predict_v2.proto", package="inference", syntax="proto3"
)
file.message_type.add(name="ServerLiveRequest")
file.message_type.add(name="ServerLiveResponse").field.add(name="live", number=1, type=8, label=1)
file.service.add(name="GRPCInferenceService").method.add(
    name="ServerLive",
    input_type=".inference.ServerLiveRequest",
    output_type=".inference.ServerLiveResponse",
)
descriptor_pool.Default().AddSerializedFile(file.SerializeToString())
descriptor_pool.Default().FindServiceByName("inference.GRPCInferenceService")
"""


@pytest.mark.parametrize("order", ["ours first", "theirs first"])
@pytest.mark.parametrize("client", ["tritonclient", "kserve"])
def test_another_client_of_the_protocol_shares_the_process(client: str, order: str) -> None:
    if client == "tritonclient":
        pytest.importorskip("tritonclient.grpc", reason="tritonclient[grpc] is not installed")
    imports = [OUR_IMPORT, TRITON if client == "tritonclient" else KSERVE]
    if order == "theirs first":
        imports.reverse()

    result = subprocess.run(
        [sys.executable, "-c", "\n".join([*imports, OUR_USE])],
        capture_output=True,
        text=True,
        check=False,
    )

    assert result.returncode == 0, result.stderr


def test_reflection_shows_the_public_service_and_no_private_name() -> None:
    pool = DescriptorPool()
    for file in public_file_descriptors():
        pool.Add(file)

    service = pool.FindServiceByName(PUBLIC_SERVICE)

    assert service.full_name == "inference.GRPCInferenceService"
    assert len(service.methods) == 20
    assert pool.FindMessageTypeByName("inference.ModelConfig")
    assert not any(
        b"modelrail.oip" in file.SerializeToString() for file in public_file_descriptors()
    )


def test_reflection_shows_what_other_languages_compile(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools", reason="grpcio-tools is not installed")
    output = tmp_path / "set"
    files = ["inference/model_config.proto", "inference/grpc_service.proto"]
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTOS}"]
    subprocess.run([*command, f"--descriptor_set_out={output}", *files], check=True)

    compiled = FileDescriptorSet.FromString(output.read_bytes()).file

    for file in compiled:
        for message in file.message_type:
            _forget_json_names(message)
    assert list(compiled) == list(public_file_descriptors())


def _forget_json_names(message: DescriptorProto) -> None:
    """protoc writes them out; generated Python code leaves them to their default."""
    for field in message.field:
        field.ClearField("json_name")
    for nested in message.nested_type:
        _forget_json_names(nested)
