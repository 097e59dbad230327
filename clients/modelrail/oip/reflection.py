"""The Open Inference Protocol under its public package, for servers that offer reflection.

Python's messages live in the package `modelrail.oip.v2`, so that they never meet those of other
clients of the protocol in one process. A user of reflection has to see the public package
`inference` nevertheless.
"""

from __future__ import annotations

from typing import Final

from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto

from modelrail.oip.v2 import grpc_service_pb2, model_config_pb2

PUBLIC_SERVICE: Final = "inference.GRPCInferenceService"

_PRIVATE, _PUBLIC = "modelrail.oip.v2", "inference"


def public_file_descriptors() -> tuple[FileDescriptorProto, ...]:
    """Return the protocol's files as other languages compile them, dependencies first.

    Add them to a `DescriptorPool` of your own. The default pool may hold another client's files of
    the same package, and a second definition there fails.

    Returns:
        `inference/model_config.proto` and `inference/grpc_service.proto`.
    """
    return tuple(
        _published(FileDescriptorProto.FromString(module.DESCRIPTOR.serialized_pb))
        for module in (model_config_pb2, grpc_service_pb2)
    )


def _published(file: FileDescriptorProto) -> FileDescriptorProto:
    file.name = _public_path(file.name)
    file.package = _PUBLIC
    for index, dependency in enumerate(file.dependency):
        file.dependency[index] = _public_path(dependency)
    for message in file.message_type:
        _publish_message(message)
    for service in file.service:
        for method in service.method:
            method.input_type = _public_type(method.input_type)
            method.output_type = _public_type(method.output_type)
    return file


def _publish_message(message: DescriptorProto) -> None:
    for field in message.field:
        if field.type_name:
            field.type_name = _public_type(field.type_name)
    for nested in message.nested_type:
        _publish_message(nested)


def _public_path(path: str) -> str:
    return path.replace(_PRIVATE.replace(".", "/") + "/", _PUBLIC + "/")


def _public_type(name: str) -> str:
    return name.replace(f".{_PRIVATE}.", f".{_PUBLIC}.", 1)
