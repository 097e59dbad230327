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


def refusal(version: pb.ModelVersion) -> list[tuple[str, str]]:
    with pytest.raises(InvalidArgument) as caught:
        requests.publication(pb.CreateModelVersionRequest(parent="models/m", model_version=version))
    return [(violation.field, violation.description) for violation in caught.value.violations]


def sized(**extents: int) -> pb.ModelVersion:
    """A full version with lists of other lengths."""
    version = full_version()
    tensor = version.signature.inputs[0]
    for name, count in extents.items():
        match name:
            case "rank":
                tensor.shape.extend([pb.Dimension(size=1)] * (count - len(tensor.shape)))
            case "inputs":
                version.signature.inputs.extend([tensor] * (count - 1))
            case "labels":
                tensor.labels.extend(["a"] * (count - len(tensor.labels)))
            case "files":
                version.files.extend([version.files[0]] * (count - 1))
            case "metrics":
                version.metrics.extend([version.metrics[0]] * (count - 1))
            case "packages":
                version.lineage.packages.update({f"p{n}": "1" for n in range(count - 1)})
            case "tools":
                version.certificate.tools.update({f"p{n}": "1" for n in range(count)})
            case "batch_sizes":
                version.certificate.batch_sizes.extend([1] * (count - 3))
            case "parities":
                version.certificate.outputs.extend([version.certificate.outputs[0]] * (count - 1))
            case "attempts":
                version.certificate.attempts.extend([pb.ExportAttempt(method="a")] * count)
    return version


SIGNATURE = "model_version.signature"
CERTIFICATE = "model_version.certificate"
PACKAGES = "expected at most 1024 names and versions of at most 256 characters"


@pytest.mark.parametrize(
    ("extent", "count", "field", "description"),
    [
        ("rank", 65, f"{SIGNATURE}.inputs[0].shape", "expected at most 64 dimensions, got 65"),
        ("inputs", 1025, f"{SIGNATURE}.inputs", "expected at most 1024, got 1025"),
        ("labels", 100_001, f"{SIGNATURE}.inputs[0].labels",
         "expected at most 100000, got 100001"),
        ("files", 257, "model_version.files", "expected 1 to 256 files, got 257"),
        ("metrics", 1025, "model_version.metrics", "expected at most 1024, got 1025"),
        ("packages", 1025, "model_version.lineage.packages", PACKAGES),
        ("tools", 1025, f"{CERTIFICATE}.tools", PACKAGES),
        ("batch_sizes", 1025, CERTIFICATE, "expected at most 1024 outputs and batch sizes"),
        ("parities", 1025, CERTIFICATE, "expected at most 1024 outputs and batch sizes"),
        ("attempts", 1025, f"{CERTIFICATE}.attempts",
         "expected at most 1024 methods of at most 256 characters, with failures of at most 1024"),
    ],
)  # fmt: skip
def test_a_list_that_is_too_long_is_refused_before_values_are_made_of_it(
    extent: str, count: int, field: str, description: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unwanted(message: object, *_: object) -> None:
        raise AssertionError(f"{type(message).__name__} was converted")

    monkeypatch.setattr(requests, "content_from_pb", unwanted)
    version = sized(**{extent: count})
    version.lineage.training_job = "this is not looked at any more"
    assert refusal(version) == [(field, description)]


def test_a_tensor_of_the_highest_rank_is_accepted() -> None:
    request = pb.CreateModelVersionRequest(parent="models/m", model_version=sized(rank=64))
    assert requests.publication(request).content.signature is not None


def test_a_version_that_is_too_large_is_refused_by_its_size() -> None:
    version = full_version()
    version.signature.inputs[0].labels.extend(["x" * 1024] * 1024)
    ((field, description),) = refusal(version)
    assert field == "model_version"
    assert description == f"expected at most 1048576 bytes, got {version.ByteSize()}"


def test_violations_end_at_a_hundred_and_say_that_there_are_more() -> None:
    version = full_version()
    for _ in range(1000):
        version.signature.outputs.add(shape=[pb.Dimension()])
    found = refusal(version)
    assert len(found) == 101
    assert found[0] == (
        f"{SIGNATURE}.outputs[1].shape[0]",
        "expected a size or a symbol, got neither",
    )
    assert (
        found[-1][1] == "only the first 100 wrong fields are listed, this and others are wrong too"
    )


def test_a_long_mask_is_refused_with_one_violation() -> None:
    request = pb.UpdateModelAliasRequest(
        model_alias=pb.ModelAlias(
            name="models/m/aliases/live", model_version="models/m/versions/1"
        ),
        update_mask={"paths": [""] * 200_000},
    )
    with pytest.raises(InvalidArgument) as caught:
        requests.alias_move(request)
    (violation,) = caught.value.violations
    assert violation.field == "update_mask"
    assert violation.description == "expected at most 16 paths, got 200000"
    change = pb.UpdateModelRequest(
        model=pb.Model(name="models/m"), update_mask={"paths": ["labels"] * 17}
    )
    with pytest.raises(InvalidArgument, match="expected at most 16 paths, got 17"):
        requests.model_change(change)


class Unsplittable(str):
    __slots__ = ()

    def split(self, *_: object) -> list[str]:
        raise AssertionError("a long text was taken apart")


def test_a_name_that_is_too_long_is_refused_before_it_is_split() -> None:
    with pytest.raises(InvalidArgument) as caught:
        requests.model_name(Unsplittable("/" * 1000))
    assert str(caught.value).endswith("must have the form models/{id}")


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
