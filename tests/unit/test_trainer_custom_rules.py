"""What can be told about functions of an owner before they are called."""

from __future__ import annotations

import math
from typing import Any

import pytest
from google.protobuf import json_format

from modelrail.trainer.v1 import trainer_pb2 as pb
from modelrail_trainer import spec
from modelrail_trainer.protocol.specification import spec_from_pb
from modelrail_trainer.rules.validation import validate

LINE = spec.LineDataset(slope=0.5, intercept=1.0, points=100)
TABLE = spec.TableDataset(paths=("rows.csv",), target="kind")


def job(
    entry_point: str = "nets:build",
    arguments: dict[str, Any] | None = None,
    **fields: Any,
) -> spec.TrainingJobSpec:
    given: dict[str, Any] = {
        "dataset": LINE,
        "model": spec.CustomModel(entry_point=entry_point, arguments=arguments or {}),
        "loss": spec.MeanSquaredError(),
        "optimizer": spec.Adam(learning_rate=0.01),
        "epochs": 2,
        "publication": spec.Publication(model="own"),
    }
    return spec.TrainingJobSpec(**given | fields)


def imported(**fields: Any) -> spec.TrainingJobSpec:
    return job(**{"epochs": 0, "optimizer": None, "loss": None} | fields)


def fields_of(given: spec.TrainingJobSpec) -> list[str]:
    return [violation.field for violation in validate(given)]


@pytest.mark.parametrize(
    "name", ["nets:build", "package.deep.nets:build", "_a1:_b2", "a:" + "b" * 198]
)
def test_names_of_python_are_good(name: str) -> None:
    assert validate(job(name)) == []
    assert validate(job(dataset=spec.CustomDataset(entry_point=name, arguments={}))) == []


@pytest.mark.parametrize(
    "name",
    [
        *("", "nets", "nets:", ":build", "nets:build:more", "nets:build()", "nets build:x"),
        *("1nets:build", "nets:2", "nets..deep:build", ".nets:build", "../nets:build", "a/b:c"),
        *("class:build", "nets.import:build", "nets:lambda", "nëts:build", "nets:build\n"),
        "a:" + "b" * 199,
    ],
)
def test_other_names_are_refused_with_what_is_expected(name: str) -> None:
    for field, given in (
        ("model.custom", job(name)),
        (
            "dataset.custom",
            job(dataset=spec.CustomDataset(entry_point=name, arguments={})),
        ),
    ):
        (violation,) = validate(given)
        assert violation.field == f"{field}.entry_point"
        assert violation.description.startswith("expected module:function, names of Python")


@pytest.mark.parametrize(
    ("value", "good"),
    [
        *((math.nan, False), (math.inf, False), ([1.0, [-math.inf]], False)),
        ({"a": {"b": [math.nan]}}, False),
        *((1.5, True), (10**400, True), (True, True), (None, True), ("nan", True)),
        ([1, {"a": [2.0, None]}], True),
    ],
)
def test_numbers_in_arguments_are_finite_however_deep(value: Any, good: bool) -> None:
    found = fields_of(job(arguments={"width": 3, "given": value}))
    assert found == ([] if good else ["model.custom.arguments['given']"])


def test_there_is_a_most_number_of_arguments() -> None:
    most = {f"a{number}": 1 for number in range(100)}
    assert validate(job(arguments=most)) == []
    (violation,) = validate(job(arguments=most | {"one_more": 1}))
    assert violation == ("model.custom.arguments", "expected at most 100 arguments, got 101")


def test_an_import_says_nothing_of_training() -> None:
    assert validate(imported()) == []
    assert validate(imported(loss=spec.MeanSquaredError())) == []
    steps = (spec.Standardize(),)
    found = validate(imported(optimizer=spec.Adam(learning_rate=0.1), preprocessing=steps))
    assert [violation.field for violation in found] == ["optimizer", "preprocessing"]
    assert all("because epochs is 0" in violation.description for violation in found)


def test_an_import_on_a_table_says_by_its_loss_what_the_target_is() -> None:
    assert fields_of(imported(dataset=TABLE)) == ["loss"]
    assert validate(imported(dataset=TABLE, loss=spec.CrossEntropy())) == []


@pytest.mark.parametrize("epochs", [0, -1])
def test_only_a_model_of_ones_own_is_imported(epochs: int) -> None:
    assert fields_of(job(model=spec.LinearModel(), epochs=epochs)) == ["epochs"]
    assert fields_of(job(epochs=-1)) == ["epochs"]


def test_every_function_is_named_with_its_field() -> None:
    both = job(dataset=spec.CustomDataset(entry_point="rows:load", arguments={}))
    assert spec.entry_points_of(both) == {
        "dataset.custom.entry_point": "rows:load",
        "model.custom.entry_point": "nets:build",
    }
    assert spec.entry_points_of(job(model=spec.LinearModel())) == {}


def test_arguments_come_as_python_would_have_them() -> None:
    given = {
        "width": 64,
        "share": 0.5,
        "whole": 3.0,
        "name": "a",
        "on": True,
        "none": None,
        "list": [1, "b", [False]],
        "deep": {"sizes": [2, 4]},
    }
    content = {"model": {"custom": {"entry_point": "nets:build", "arguments": given}}}
    model = spec_from_pb(json_format.ParseDict(content, pb.TrainingJobSpec())).model
    assert isinstance(model, spec.CustomModel)
    assert model.arguments == given
    kinds = {name: type(value) for name, value in model.arguments.items()}
    # JSON has one kind of number, and a width of 64.0 would be no width.
    assert (kinds["width"], kinds["share"], kinds["whole"]) == (int, float, int)
    assert kinds["on"] is bool
