"""Messages and values of the registry hold the same; the policy has a row for every RPC."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime

import pytest

from modelrail.names import ModelVersionName
from modelrail.registry.v1 import registry_pb2 as pb
from modelrail_registry.catalog.documents import dump_content, load_content
from modelrail_registry.protocol import replies, requests
from modelrail_registry.protocol.policy import POLICY
from modelrail_registry.resources import EventKind, ModelVersion
from modelrail_registry.storage.payload import refused_kind
from modelrail_server.errors import InvalidArgument


def full_version() -> pb.ModelVersion:
    tensor = pb.TensorSpec(
        name="x",
        datatype="FP32",
        shape=[pb.Dimension(symbol="batch"), pb.Dimension(size=0)],
        meaning="pixel",
        value_range=pb.ValueRange(minimum=0, maximum=16),
        labels=["a", "b"],
    )
    return pb.ModelVersion(
        files=[pb.File(path="a", sha256="0" * 64, size_bytes=1, media_type="application/onnx")],
        signature=pb.Signature(inputs=[tensor], outputs=[tensor]),
        metrics=[pb.Metric(name="accuracy", value=0.5, split="test", runtime="pytorch")],
        lineage=pb.Lineage(
            training_job="trainingJobs/j",
            dataset="digits",
            dataset_sha256="1" * 64,
            spec_sha256="2" * 64,
            seed=-7,
            hardware="x86_64, 2 processors",
            packages={"torch": "2.13.0"},
            parent_version="models/m/versions/1",
        ),
        certificate=pb.ExportCertificate(
            opset=18,
            absolute_tolerance=1e-4,
            relative_tolerance=1e-3,
            batch_sizes=[1, 2, 7],
            outputs=[pb.OutputParity(name="y", max_absolute_difference=1e-6)],
            rows=64,
        ),
        description="first",
    )


@pytest.mark.parametrize("message", [full_version(), pb.ModelVersion()])
def test_a_version_survives_conversion_and_storage(message: pb.ModelVersion) -> None:
    content = requests.content_from_pb(message)
    content = load_content(dump_content(content), content.files)
    version = ModelVersion(
        name=ModelVersionName("m", 2), uid="u", content=content, create_time=datetime.now(UTC)
    )
    back = replies.version_to_pb(version)
    for field in ("name", "uid", "number", "state", "create_time"):
        back.ClearField(field)
    assert back == message


def test_a_full_version_is_accepted_with_a_request_id_and_its_digest_covers_every_field() -> None:
    request = pb.CreateModelVersionRequest(
        parent="models/m", model_version=full_version(), request_id=str(uuid.uuid4())
    )
    first = requests.publication(request).key
    request.model_version.lineage.seed = 8
    second = requests.publication(request).key
    assert first is not None
    assert second is not None
    assert first.request_id == second.request_id
    assert first.digest != second.digest


def test_a_dimension_that_says_nothing_is_refused() -> None:
    version = full_version()
    version.signature.inputs[0].shape.add()
    with pytest.raises(InvalidArgument) as caught:
        requests.publication(pb.CreateModelVersionRequest(parent="models/m", model_version=version))
    assert [v.field for v in caught.value.violations] == [
        "model_version.signature.inputs[0].shape[2]"
    ]


def test_an_absent_mask_changes_what_is_populated_and_a_star_changes_all() -> None:
    model = pb.Model(name="models/m", description="new")
    change = requests.model_change(pb.UpdateModelRequest(model=model))
    assert (change.description, change.labels) == ("new", None)
    request = pb.UpdateModelRequest(model=model)
    request.update_mask.paths.append("*")
    assert requests.model_change(request).labels == {}


def test_every_event_kind_has_a_type_of_its_own() -> None:
    types = {replies._EVENT_TYPES[kind] for kind in EventKind}
    assert types == set(pb.Event.Type.values()) - {pb.Event.TYPE_UNSPECIFIED}


def test_every_rpc_has_a_row_in_the_policy() -> None:
    service = pb.DESCRIPTOR.services_by_name["RegistryService"]
    assert set(POLICY) == {f"/{service.full_name}/{method.name}" for method in service.methods}


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x05K\x01.",
        b"cos\nsystem\n(S'x'\ntR.",
        b"PK\x03\x04",
        b"\x1f\x8b\x08",
        b"(ios\nsystem\n.",
    ],
)
def test_code_and_archives_are_recognised(data: bytes) -> None:
    assert refused_kind(data, data[-1:])


@pytest.mark.parametrize(
    "data", [b"", b"\x08\x08\x12\x07pytorch", b'{"a": 1}', b"A text.\nWith lines.\n", b"\x80\x00"]
)
def test_plain_data_is_let_through(data: bytes) -> None:
    assert not refused_kind(data, data[-1:])
