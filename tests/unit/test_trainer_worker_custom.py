"""What functions of an owner return is held to its contract, and what they raise is theirs."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from modelrail_trainer.code_roots import CodeRoots
from modelrail_trainer.failure import (
    DataError,
    ExportFailed,
    GateFailed,
    JobFailure,
    UserCodeError,
)
from modelrail_trainer.spec import (
    Adam,
    CrossEntropy,
    CustomDataset,
    CustomModel,
    DatasetFacts,
    LinearModel,
    Publication,
    Task,
    TrainingJobSpec,
)
from modelrail_trainer.user_code import CustomData
from modelrail_trainer.worker.custom.code import UserCode
from modelrail_trainer.worker.custom.dataset import MAX_OUTPUTS, CustomRows, load_custom
from modelrail_trainer.worker.custom.model import build_custom, check_outputs
from modelrail_trainer.worker.data import load
from modelrail_trainer.worker.training_data import TrainingData

X = np.arange(12, dtype=np.float32).reshape(6, 2)
CLASSES = np.array([0, 1, 2, 0, 1, 2])
VALUES = np.linspace(0, 1, 6, dtype=np.float32)
TOKENS = np.array([[1, 2, 0], [3, 1, 1]])
MODULE = """\
import random
import numpy as np
import torch


def draw(*given, **arguments):
    return random.random(), np.random.rand(), torch.rand(1).item(), given, arguments


def fails(kind):
    raise kind


def leaves(status):
    import os
    os._exit(status)


def forks():
    import os
    child = os.fork()
    if child == 0:
        os._exit(7)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def number(facts):
    return 7


def rows(counts, labels, divided):
    targets = np.repeat(np.arange(len(counts)), np.array(counts, int))
    pair = (np.zeros((len(targets), 2), np.float32), targets)
    others = {"validation": pair, "test": pair} if divided else {}
    # Training lacks the last row, where validation and test have all.
    last = -1 if divided else None
    return {"inputs": pair[0][:last], "targets": pair[1][:last], "labels": labels, **others}


def frozen(facts):
    return torch.nn.Linear(2, 2).requires_grad_(False)
"""


def rows(inputs: Any = X, targets: Any = CLASSES, **others: Any) -> CustomRows:
    return CustomRows("rows:load", CustomData(inputs=inputs, targets=targets, **others))


def wrong(returned: object) -> str:
    with pytest.raises(UserCodeError) as caught:
        CustomRows("rows:load", returned)
    text = str(caught.value)
    assert text.startswith("rows:load: ")
    return text.removeprefix("rows:load: ")


# Data that keeps its contract


def test_classes_are_named_by_their_numbers_where_they_have_no_names() -> None:
    made = rows()
    assert (made.task, made.labels, made.outputs, made.tokens) == (
        Task.CLASSIFICATION, ("0", "1", "2"), 3, 0
    )  # fmt: skip
    assert rows(labels=["a", "b", "c", "never seen"]).outputs == 4
    assert rows(targets=np.zeros(6, np.int64)).labels == ("0", "1")


def test_values_have_a_column_for_each_output() -> None:
    assert rows(targets=VALUES).parts[0].targets.shape == (6, 1)
    made = rows(targets=np.stack([VALUES, VALUES], axis=1))
    assert (made.task, made.outputs, made.labels) == (Task.REGRESSION, 2, ())


def test_bytes_become_numbers_and_bytes_of_a_vocabulary_tokens() -> None:
    images = np.zeros((6, 3, 4, 4), np.uint8)
    assert rows(inputs=images).parts[0].inputs.dtype == np.float32
    made = rows(inputs=TOKENS.astype(np.uint8), targets=CLASSES[:2], tokens=4)
    assert (made.parts[0].inputs.dtype.name, made.tokens) == ("int64", 4)


def test_a_mapping_is_as_good_as_the_class() -> None:
    made = CustomRows("rows:load", {"inputs": X, "targets": VALUES, "input_name": "place"})
    assert (made.input_name, len(made.parts)) == ("place", 1)


def test_rows_that_come_divided_stay_so() -> None:
    made = rows(validation=(X[:2], CLASSES[:2]), test=[X[:3], CLASSES[:3]])
    assert [len(part.inputs) for part in made.parts] == [6, 2, 3]


def test_arrays_that_torch_cannot_use_in_place_are_copied() -> None:
    frozen = np.broadcast_to(np.float32(1), (6, 2))
    swapped = X.astype(">f4")
    for inputs in (frozen, swapped, X[:, ::-1]):
        part = rows(inputs=inputs).parts[0]
        np.testing.assert_array_equal(torch.from_numpy(part.inputs).numpy(), inputs)
        assert part.inputs.flags.writeable
    for targets in (np.broadcast_to(np.float32(1), 6), VALUES.astype(">f4"), VALUES[::-1]):
        part = rows(targets=targets).parts[0]
        np.testing.assert_array_equal(torch.from_numpy(part.targets).numpy()[:, 0], targets)
        assert part.targets.flags.writeable


# Data that breaks it


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"inputs": X[0]}, "inputs: expected [rows, …] with at least one row"),
        ({"inputs": X[:0]}, "inputs: expected [rows, …] with at least one row"),
        ({"inputs": X[:, :0]}, "inputs: expected [rows, …] with at least one row"),
        ({"inputs": X.tolist()}, "inputs: expected a NumPy array of float32, int64, uint8; got li"),
        ({"inputs": X.astype(float)}, "inputs: expected a NumPy array of float32, int64, uint8; "),
        ({"inputs": X.astype(object)}, "inputs: expected a NumPy array of float32, int64, uint8;"),
        ({"inputs": torch.from_numpy(X)}, "of float32, int64, uint8; got torch.Tensor"),
        ({"inputs": X * np.nan}, "inputs: expected finite numbers; got nan at [0, 0]"),
        ({"inputs": TOKENS}, "inputs: expected float32 or uint8 numbers, or tokens beside int64"),
        ({"targets": CLASSES[:5]}, "targets: expected 6 rows as in the inputs; got 5"),
        ({"targets": CLASSES - 1}, "targets: expected class numbers from 0 to 1; got some from -1"),
        ({"targets": CLASSES, "labels": ["a", "b"]}, "class numbers from 0 to 1; got some from 0"),
        ({"targets": CLASSES * MAX_OUTPUTS}, f"expected class numbers below {MAX_OUTPUTS}"),
        ({"targets": CLASSES[:, None]}, "targets: expected class numbers [rows]; got int64 [6, 1]"),
        ({"targets": X[:, :, None]}, "targets: expected float32 [rows] or [rows, outputs]"),
        ({"targets": X[:, :0]}, "targets: expected float32 [rows] or [rows, outputs]"),
        ({"targets": VALUES * np.nan}, "targets: expected finite numbers; got nan at [0, 0]"),
        (
            {"targets": np.zeros((6, MAX_OUTPUTS + 1), np.float32)},
            f"targets: expected at most {MAX_OUTPUTS} values a row; got {MAX_OUTPUTS + 1}",
        ),
        ({"targets": VALUES, "labels": ["a", "b"]}, "labels: expected none beside float32 targets"),
        ({"labels": "abc"}, "labels: expected a sequence of texts; got str"),
        ({"labels": ["a", 2, "c"]}, "labels: expected a sequence of texts"),
        ({"labels": ["a", "a", "c"]}, "different texts that are not empty; got 3, 2 different"),
        ({"labels": ["a", "", "c"]}, "different texts that are not empty"),
        ({"labels": ["a"], "targets": CLASSES * 0}, "labels: expected from 2 to"),
        ({"tokens": 1, "inputs": TOKENS}, "tokens: expected 0, or at least 2 with the padding"),
        ({"tokens": True}, "tokens: expected a whole number from 0; got True"),
        ({"tokens": -1}, "tokens: expected a whole number from 0; got -1"),
        ({"tokens": 9}, "inputs: expected tokens, int64 or uint8 [rows, length]; got float32"),
        ({"tokens": 3, "inputs": TOKENS}, "inputs: expected tokens from 0 to 2; got some from 0"),
        ({"tokens": 4, "inputs": -TOKENS}, "inputs: expected tokens from 0 to 3; got some from -3"),
        ({"input_name": "a b"}, "input_name: expected a name like those of Python"),
        ({"input_name": "probabilities"}, "input_name: expected a name like those of Python, none"),
        ({"input_name": 3}, "input_name: expected a name like those of Python"),
        ({"meaning": "m" * 257}, "meaning: expected a text of at most 256 characters"),
        ({"meaning": None}, "meaning: expected a text of at most 256 characters; got None"),
        ({"test": (X, CLASSES)}, "validation, test: expected both or none of them; got one"),
        (
            {"test": (X, CLASSES), "validation": X},
            "validation: expected a pair of inputs and targets; got float32 [6, 2]",
        ),
        (
            {"test": (X, CLASSES), "validation": (X[:, :1], CLASSES)},
            "validation inputs: expected as in training, float32 ['rows', 2]; got float32 [6, 1]",
        ),
        (
            {"test": (X, VALUES), "validation": (X, CLASSES)},
            "test targets: expected as in training, int64 ['rows']; got float32 [6, 1]",
        ),
        (
            {"test": (X, CLASSES + 5), "validation": (X, CLASSES), "labels": ["a", "b", "c"]},
            "test targets: expected class numbers from 0 to 2; got some from 5 to 7",
        ),
    ],
)  # fmt: skip
def test_what_breaks_the_contract_is_named_with_what_is_expected(
    given: dict[str, Any], expected: str
) -> None:
    assert expected in wrong(CustomData(**{"inputs": X, "targets": CLASSES} | given))


@pytest.mark.parametrize(
    ("returned", "expected"),
    [
        (None, "a mapping with its fields, got a NoneType"),
        ((X, CLASSES), "a mapping with its fields, got a tuple"),
        ({"inputs": X}, "targets is missing"),
        ({"inputs": X, "targets": CLASSES, "extra": 1}, "got 'extra'"),
        ({"inputs": X, "targets": CLASSES, 7: 1}, "got 7"),
    ],
)
def test_what_is_no_data_set_is_told(returned: object, expected: str) -> None:
    assert expected in wrong(returned)


# Code that is called


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder of user code, whose module is forgotten with the test."""
    (tmp_path / "house_code.py").write_text(MODULE)
    path, bytecode, prefix = list(sys.path), sys.dont_write_bytecode, sys.pycache_prefix
    sys.dont_write_bytecode, sys.pycache_prefix = False, None  # whatever the tests run with
    yield tmp_path
    sys.path[:], sys.dont_write_bytecode, sys.pycache_prefix = path, bytecode, prefix
    sys.modules.pop("house_code", None)


@pytest.fixture
def ends() -> list[str]:
    """Why the code ended the process."""
    return []


@pytest.fixture
def code(folder: Path, ends: list[str]) -> UserCode:
    return UserCode(CodeRoots([folder]), ends.append)


def failure(code: UserCode, function: str, **arguments: Any) -> str:
    with pytest.raises(UserCodeError) as caught:
        code.call(f"house_code:{function}", seed=1, **arguments)
    return str(caught.value)


def test_the_seed_reaches_every_generator(code: UserCode) -> None:
    one, two, three = (code.call("house_code:draw", "facts", seed=s, width=3) for s in (5, 5, 6))
    assert one == two
    assert all(a != b for a, b in zip(one[:3], three[:3], strict=True))
    assert one[3:] == (("facts",), {"width": 3})
    code.call("house_code:draw", seed=1 << 40)  # NumPy takes 32 bits


def test_sources_of_the_folder_are_in_the_lineage_and_no_others(
    code: UserCode, folder: Path
) -> None:
    assert code.digests() == {}
    code.call("house_code:draw", seed=1)
    digest = hashlib.sha256((folder / "house_code.py").read_bytes()).hexdigest()
    assert code.digests() == {"user-code:house_code": digest}
    assert [path.name for path in folder.iterdir()] == ["house_code.py"]  # no bytecode


class _Speechless(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("a\n  b"), "house_code:fails: ValueError: a b\n"),
        (ValueError("at /srv/a/b.py"), "house_code:fails: ValueError: at b.py\n"),
        (KeyError(), "house_code:fails: KeyError\n"),
        (_Speechless(), "house_code:fails: _Speechless\n"),
        (PermissionError(13, "Denied", "/srv/a"), "Denied: 'a'; a job writes in the folder that"),
        (MemoryError("x" * 9999), "house_code:fails: MemoryError: " + "x" * 1500 + "\n"),
        (SystemExit(3), "ended the process with sys.exit(3); return what was asked for, or raise"),
        (KeyboardInterrupt(), "ended the process with an interrupt; return what was asked for"),
    ],
)
def test_an_exception_is_told_in_one_line_and_with_its_frames(
    code: UserCode, error: BaseException, expected: str
) -> None:
    told = failure(code, "fails", kind=error)
    assert expected in told
    assert told.endswith("\n  File 'house_code.py', line 11, in fails\n    raise kind")


def test_an_end_of_the_process_is_told_before_it_ends(
    code: UserCode, ends: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ended(BaseException):
        pass

    def end(status: int) -> None:
        raise Ended(status)

    monkeypatch.setattr("modelrail_trainer.worker.custom.blame._leave", end)
    before = os._exit
    with pytest.raises(Ended, match="3"):
        code.call("house_code:leaves", seed=1, status=0)
    (why,) = ends
    assert why.startswith("house_code:leaves ended the process with os._exit(0); return what")
    assert why.endswith("\n  File 'house_code.py', line 16, in leaves\n    os._exit(status)")
    assert os._exit is before


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_of_the_code_ends_as_it_likes(code: UserCode, ends: list[str]) -> None:
    assert code.call("house_code:forks", seed=1) == 7
    assert ends == []


def test_that_another_process_is_gone_is_not_blamed_on_the_code(
    code: UserCode, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "[/third_party/gloo/gloo/transport/tcp/pair.cc:537] Read error: Connection reset by peer"

    class Back(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, value: torch.Tensor) -> torch.Tensor:
            return value.clone()

        @staticmethod
        def backward(context: Any, *gradients: Any) -> Any:
            raise RuntimeError(said)

    def step_back() -> None:
        value = torch.ones((), requires_grad=True)
        Back.apply(value).backward()  # type: ignore[no-untyped-call]  # torch does not type it

    # A job of one process has no other.
    with pytest.raises(UserCodeError, match="Connection reset"), code.blamed("house_code:build"):
        step_back()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RuntimeError, match="Connection reset"), code.blamed("house_code:build"):
        step_back()


def test_a_defect_of_the_trainer_is_not_blamed_on_the_code(code: UserCode) -> None:
    with pytest.raises(ZeroDivisionError), code.blamed("house_code:build"):
        _ = 1 / 0
    with pytest.raises(DataError, match=r"^no rows$"), code.blamed("house_code:build"):
        raise DataError("no rows")


@pytest.mark.parametrize(
    ("kind", "rule"),
    [(ExportFailed, "operations that ONNX has"), (GateFailed, "to compute what the module does")],
)
def test_what_cannot_be_exported_says_what_to_do(
    kind: type[JobFailure], rule: str, code: UserCode
) -> None:
    with pytest.raises(kind, match=rf"^nets:b: .*{rule}.*; why$"), code.blamed("nets:b"):
        raise kind("why")


def test_data_and_models_that_are_not_there_are_told(code: UserCode) -> None:
    with pytest.raises(UserCodeError, match=r"expected a function 'gone' in the module"):
        load_custom(code, CustomDataset(entry_point="house_code:gone", arguments={}), seed=1)
    facts = DatasetFacts(task=Task.REGRESSION, rows=6, row_shape=(2,), outputs=1)
    model = CustomModel(entry_point="gone:build", arguments={})
    with pytest.raises(UserCodeError, match=r"^gone:build: expected a module in a --user-code"):
        build_custom(code, model, facts, seed=1, trains=True)


LEARNED = TrainingJobSpec(
    dataset=CustomDataset(entry_point="house_code:rows", arguments={}),
    model=LinearModel(),
    loss=CrossEntropy(),
    optimizer=Adam(),
    epochs=1,
    publication=Publication(model="m"),
)


def loaded(code: UserCode, counts: list[int], labels: list[str], **fields: Any) -> TrainingData:
    divided = fields.pop("divided", False)
    arguments = {"counts": counts, "labels": labels, "divided": divided}
    dataset = CustomDataset(entry_point="house_code:rows", arguments=arguments)
    return load(replace(LEARNED, dataset=dataset, **fields), code=code)


@pytest.mark.parametrize(
    ("counts", "labels", "divided", "told"),
    [
        ([40, 2], ["a", "b"], False, "class 'b': .*: validation and test have all 2 of it;"),
        ([40, 1], ["a", "b"], True, "class 'b': .*: validation and test have all 2 of it;"),
        ([40, 9], ["a", "b", "c"], False, "class 'c': .*: there is no row of it;"),
        ([40, 0, 9], [], False, "class '1': .*: there is no row of it;"),
    ],
)
def test_a_class_that_no_training_row_has_is_named_with_what_to_do(
    counts: list[int], labels: list[str], divided: bool, told: str, code: UserCode
) -> None:
    with pytest.raises(DataError, match=f"{told} give more rows of it, or leave the class out"):
        loaded(code, counts, labels, divided=divided)


def test_a_class_is_learned_of_one_row_and_an_import_needs_none(code: UserCode) -> None:
    assert (loaded(code, [40, 3], ["a", "b"]).train.targets == 1).sum() == 1
    model = CustomModel(entry_point="house_code:frozen", arguments={})
    assert loaded(code, [40, 2], ["a", "b", "c"], model=model, epochs=0).outputs == 3


# Modules


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("number", "expected a torch.nn.Module, got a int"),
        ("frozen", "expected parameters that can be trained, got none"),
        ("torch", "expected a function 'torch' in the module 'house_code', got a module"),
    ],
)
def test_what_is_no_module_that_can_be_trained_is_told(
    name: str, expected: str, code: UserCode
) -> None:
    facts = DatasetFacts(task=Task.CLASSIFICATION, rows=6, row_shape=(2,), outputs=2)
    model = CustomModel(entry_point=f"house_code:{name}", arguments={})
    with pytest.raises(UserCodeError, match=expected):
        build_custom(code, model, facts, seed=1, trains=True)


class Told(nn.Module):
    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor) -> Any:
        return self.answer(x)


def test_a_module_gives_finite_numbers_for_any_number_of_rows(code: UserCode) -> None:
    inputs = torch.ones(9, 2)
    check_outputs(code, "nets:build", Told(lambda x: x), inputs, 2)

    def check(answer: Any) -> str:
        with pytest.raises(UserCodeError) as caught:
            check_outputs(code, "nets:build", Told(answer), inputs, 2)
        return str(caught.value)

    assert "got float32 [2, 1]" in check(lambda x: x[:, :1])
    assert "got float64 [2, 2]" in check(Tensor.double)
    assert "to float32 [7, 2], got float32 [2, 2]" in check(lambda x: x[:2])
    assert "got a tuple" in check(lambda x: (x, x))
    assert "got nan for output 0 of row 0; look for what it divides by" in check(
        lambda x: (x - 1) / 0
    )
    assert "got inf for output 1 of row 0" in check(lambda x: x / torch.tensor([1.0, 0.0]))


def test_looking_at_a_module_moves_no_generator(code: UserCode) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    check_outputs(code, "nets:build", Told(torch.rand_like), torch.ones(9, 2), 2)
    assert torch.equal(torch.rand(1), expected)
