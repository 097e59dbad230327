"""Server reflection over a descriptor pool of its own.

The pool is private because what a service shows may differ from what Python runs: the Open
Inference Protocol is compiled under a proto package of our own, and callers must see the public
one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import grpc.aio
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha._async import ReflectionServicer

from modelrail_server.policy import Permission, Policy

__all__ = ["REFLECTION_POLICY", "REFLECTION_SERVICE", "add_reflection", "pool_of"]

REFLECTION_SERVICE = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"].full_name
REFLECTION_POLICY: Policy = {f"/{REFLECTION_SERVICE}/ServerReflectionInfo": Permission.READ}


def add_reflection(
    server: grpc.aio.Server,
    services: Iterable[str],
    descriptors: Iterable[FileDescriptor | FileDescriptorProto],
) -> None:
    """Adds the reflection service.

    Args:
        server: A server that has not started.
        services: Full names of all its services.
        descriptors: Files that define them.
    """
    pool = pool_of([*descriptors, _proto(reflection_pb2.DESCRIPTOR)])
    servicer = ReflectionServicer(sorted(services), pool)
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(  # type: ignore[no-untyped-call]
        servicer, server
    )


def pool_of(descriptors: Iterable[FileDescriptor | FileDescriptorProto]) -> DescriptorPool:
    """Returns a pool with the files and everything that they import.

    Raises:
        KeyError: An imported file is neither given nor known to this process.
    """
    given: dict[str, FileDescriptorProto] = {}
    for descriptor in descriptors:
        file = _proto(descriptor)
        given[file.name] = file
    pool = DescriptorPool()
    added: set[str] = set()

    def add(name: str) -> None:
        if name in added:
            return
        added.add(name)
        file = given.get(name)
        if file is None:
            file = _proto(descriptor_pool.Default().FindFileByName(name))
        for dependency in file.dependency:
            add(dependency)
        pool.AddSerializedFile(file.SerializeToString())

    for name in given:
        add(name)
    return pool


def _proto(descriptor: Any) -> FileDescriptorProto:
    if isinstance(descriptor, FileDescriptorProto):
        return descriptor
    file = FileDescriptorProto()
    descriptor.CopyToProto(file)
    return file
