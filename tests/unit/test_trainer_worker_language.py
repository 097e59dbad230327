"""Text files as a stream of bytes, and the decoder that learns to go on with them."""

from __future__ import annotations

import errno
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from modelrail.trainer.v1 import trainer_pb2 as pb
from modelrail_trainer import spec
from modelrail_trainer.data_roots import DataRoots, with_real_paths
from modelrail_trainer.failure import DataError, GateFailed
from modelrail_trainer.protocol.requests import new_job_from_pb
from modelrail_trainer.protocol.specification import spec_from_pb
from modelrail_trainer.rules.validation import validate
from modelrail_trainer.worker.data import load
from modelrail_trainer.worker.export import acceptance
from modelrail_trainer.worker.export.exporter import export, exported_module, signature_of
from modelrail_trainer.worker.language.figures import language_figures
from modelrail_trainer.worker.language.samples import printable, samples
from modelrail_trainer.worker.language.stream import load_stream
from modelrail_trainer.worker.learning.checkpoint import Checkpoints
from modelrail_trainer.worker.learning.evaluate import evaluate, torch_predict
from modelrail_trainer.worker.learning.loop import Epoch, fit
from modelrail_trainer.worker.learning.losses import at_each_place, cross_entropy
from modelrail_trainer.worker.part import Part
from modelrail_trainer.worker.training_data import TrainingData
from modelrail_trainer.zoo.networks.gpt import angles, rotated

CONTEXT = 8
GPT = spec.GptModel(width=16, layers=2, heads=2, dropout=0.1)
SPLIT = spec.Split(validation_fraction=0.2, test_fraction=0.1)


def job(path: Path, **fields: Any) -> spec.TrainingJobSpec:
    plain = spec.TrainingJobSpec(
        dataset=spec.LinesDataset(paths=(str(path),), context_length=CONTEXT),
        split=SPLIT,
        model=GPT,
        loss=spec.CrossEntropy(),
        optimizer=spec.Adam(learning_rate=0.01),
        epochs=3,
        batch_size=16,
        seed=5,
        publication=spec.Publication(model="language"),
    )
    return replace(plain, **fields)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text"
    path.write_bytes(b"ab\ncd\0\xff " * 400)
    return path


# The stream


def test_windows_follow_each_other_and_none_reaches_into_another_part(tmp_path: Path) -> None:
    content = bytes(np.random.default_rng(1).integers(0, 256, 1000).tolist())
    paths = [tmp_path / "a", tmp_path / "b"]
    for path, half in zip(paths, (content[:333], content[333:]), strict=True):
        path.write_bytes(half)
    dataset = spec.LinesDataset(paths=tuple(map(str, paths)), context_length=CONTEXT)
    folder = tmp_path / "data"
    folder.mkdir()
    stream = load_stream(dataset, SPLIT, folder)
    assert stream.size_bytes == 1000
    for part, (first, last) in zip(stream.parts, ((0, 700), (700, 900), (900, 1000)), strict=True):
        windows = (last - first - 1) // CONTEXT
        assert part.inputs.shape == part.targets.shape == (windows, CONTEXT)
        whole = windows * CONTEXT
        assert part.inputs.tobytes() == content[first : first + whole]
        assert part.targets.tobytes() == content[first + 1 : first + 1 + whole]


def test_the_digest_is_of_the_files_and_their_order(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_bytes(name.encode() * 200)

    def digest(*names: str) -> str:
        folder = tmp_path / "".join(("data", *names))
        folder.mkdir()
        paths = tuple(str(tmp_path / name) for name in names)
        return load_stream(spec.LinesDataset(paths=paths, context_length=8), SPLIT, folder).sha256

    assert digest("a", "b") != digest("b", "a")


def test_a_text_too_short_for_a_window_in_each_part_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "short"
    path.write_bytes(b"x" * 89)
    dataset = spec.LinesDataset(paths=(str(path),), context_length=CONTEXT)
    with pytest.raises(DataError, match="89 bytes, 8 of them for the test part: expected at least"):
        load_stream(dataset, SPLIT, tmp_path)
    path.write_bytes(b"x" * 90)
    assert len(load_stream(dataset, SPLIT, tmp_path).parts[2]) == 1


def test_a_file_that_is_gone_is_named_without_its_folder(tmp_path: Path) -> None:
    dataset = spec.LinesDataset(paths=(str(tmp_path / "gone"),))
    with pytest.raises(DataError, match=r"^file 'gone': No such file") as caught:
        load_stream(dataset, SPLIT, tmp_path)
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize("size_bytes", [100, 1_000_000])
def test_a_full_disk_is_no_fault_of_the_files(size_bytes: int, tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"x" * size_bytes)
    (tmp_path / "stream").symlink_to("/dev/full")
    dataset = spec.LinesDataset(paths=(str(path),), context_length=CONTEXT)
    with pytest.raises(OSError, match="No space left on device") as caught:
        load_stream(dataset, SPLIT, tmp_path)
    assert caught.value.errno == errno.ENOSPC


# The decoder


def body(model: spec.GptModel = GPT) -> nn.Module:
    torch.manual_seed(3)
    return model.build((CONTEXT,), 256, 256).eval()


def test_no_byte_changes_what_is_said_before_it_and_each_changes_what_is_said_from_there() -> None:
    network = body()
    rows = torch.arange(20, dtype=torch.uint8).unsqueeze(0)
    whole = network(rows)
    for place in range(20):
        others = rows.clone()
        others[0, place] = 200
        changed = (network(others) - whole).abs().amax(dim=2)[0]
        assert changed[:place].max() < 1e-6 if place else True
        assert (changed[place:] > 0).all()


def test_the_order_of_the_bytes_before_matters() -> None:
    # One layer: a second could tell the order from what the first saw at each place.
    network = body(replace(GPT, layers=1))
    one, other = torch.tensor([[1, 2, 3], [2, 1, 3]], dtype=torch.uint8)
    assert (network(one[None])[0, -1] - network(other[None])[0, -1]).abs().max() > 1e-6


def test_a_product_of_turned_vectors_depends_on_their_distance_alone() -> None:
    torch.manual_seed(1)
    query, key = torch.randn(2, 1, 1, 1, 6).expand(2, 1, 1, 9, 6)
    waves = angles(9, 6)
    products = (rotated(query, waves) @ rotated(key, waves).transpose(2, 3))[0, 0]  # [9, 9]
    for distance in range(-8, 9):
        diagonal = products.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-4, atol=1e-5)
    assert products[0].std() > 0.01
    torch.testing.assert_close(rotated(query, waves).norm(dim=3), query.norm(dim=3))


def test_the_weights_are_counted_without_making_the_decoder() -> None:
    facts = spec.facts_of(spec.LinesDataset(paths=("a",)))
    assert facts is not None
    for model in (GPT, spec.GptModel(width=24, layers=1, heads=3)):
        weights = sum(weight.numel() for weight in body(model).parameters())
        assert model.parameter_count(facts) == weights


def test_the_loss_is_the_mean_over_all_places() -> None:
    logits = torch.randn(3, 4, 256, generator=torch.Generator().manual_seed(2))
    classes = torch.arange(12, dtype=torch.uint8).reshape(3, 4)
    each = [
        cross_entropy(logits[row, place][None], classes[row, place][None].long())
        for row in range(3)
        for place in range(4)
    ]
    torch.testing.assert_close(
        at_each_place(cross_entropy)(logits, classes), torch.stack(each).mean()
    )


def test_figures_are_those_of_the_formulas() -> None:
    generator = np.random.default_rng(3)
    rows = generator.integers(0, 256, (40, 600), dtype=np.uint8)  # more than are looked at at once
    table = generator.normal(0, 2, (256, 256)).astype(np.float32)
    part = Part(rows[:, :-1], rows[:, 1:])
    figures = language_figures(lambda given: table[given], part)
    torch_loss = nn.functional.cross_entropy(
        torch.from_numpy(table[part.inputs]).flatten(0, 1),
        torch.from_numpy(part.targets.astype(np.int64)).flatten(),
    ).item()
    assert figures["loss"] == pytest.approx(torch_loss, rel=1e-5)
    assert figures["perplexity"] == pytest.approx(math.exp(torch_loss), rel=1e-4)
    assert figures["bits_per_byte"] == pytest.approx(torch_loss / math.log(2), rel=1e-5)
    hits = (table[part.inputs].argmax(axis=2) == part.targets).mean()
    assert figures["accuracy"] == pytest.approx(hits)
    uniform = language_figures(lambda given: np.zeros((*given.shape, 256), np.float32), part)
    assert uniform["bits_per_byte"] == pytest.approx(8)


# Learning


def test_a_text_that_repeats_is_learned_and_learned_again_the_same(
    text: Path, tmp_path: Path
) -> None:
    data = load(job(text), tmp_path / "data")
    epochs: list[Epoch] = []
    first = fit(job(text, epochs=6), data, epochs.append).network
    assert epochs[-1].validation["accuracy"] > 0.9
    assert epochs[0].validation["loss"] > 2 * epochs[-1].validation["loss"]
    assert evaluate(torch_predict(first), data.test, data.task)["bits_per_byte"] < 1
    again = fit(job(text, epochs=6), data, lambda _: None).network
    for name, weights in first.state_dict().items():
        assert weights.numpy().tobytes() == again.state_dict()[name].numpy().tobytes()


def test_training_goes_on_from_a_checkpoint_as_if_it_had_never_stopped(
    text: Path, tmp_path: Path
) -> None:
    data = load(job(text), tmp_path / "data")
    whole = fit(job(text), data, lambda _: None).network.state_dict()
    checkpoints = Checkpoints(tmp_path / "checkpoints", {}, every_steps=7)

    class Stopped(Exception):
        pass

    def stop(epoch: object) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        fit(job(text), data, stop, checkpoints)
    resumed = fit(job(text), data, lambda _: None, checkpoints).network.state_dict()
    for name, weights in whole.items():
        assert weights.numpy().tobytes() == resumed[name].numpy().tobytes()


def test_samples_are_seeded_and_of_the_length_that_is_wanted() -> None:
    network = body()
    first, *others = samples(network, CONTEXT, seed=1, count=3, length=20)
    assert [first, *others] == samples(network, CONTEXT, seed=1, count=3, length=20)
    assert len({first, *others}) == 3
    assert samples(network, CONTEXT, seed=2, count=1, length=20) != [first]


def test_a_sample_is_one_printable_line_of_what_was_likely() -> None:
    class Counting(nn.Module):
        """The next byte is one more than the last."""

        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            assert rows.shape[1] <= CONTEXT
            return 100 * nn.functional.one_hot((rows.long() + 1) % 256, 256).float()

    (text,) = samples(Counting(), CONTEXT, seed=1, count=1, length=120)
    assert text.startswith(r"\x0b\x0c\r\x0e")
    assert text.endswith(r"}~\x7f\x80\x81\x82")
    assert printable("é\n\u202e\\".encode() + b"\xff") == r"é\n\u202e" + "\\" + r"\xff"


# The gate


def exported(data: TrainingData, network: nn.Module, path: Path) -> nn.Module:
    module = exported_module(network, data.task)
    onnx.save(export(module, signature_of(data), data.task), path)
    return module


def check(data: TrainingData, network: nn.Module, path: Path) -> Any:
    module = exported(data, network, path)
    predict = torch_predict(network)
    reference = {
        "validation": evaluate(predict, data.validation, data.task),
        "test": evaluate(predict, data.test, data.task),
    }
    return acceptance.check(path, module, signature_of(data), data, reference)


def test_the_graph_takes_bytes_of_any_length_and_passes_the_gate(
    text: Path, tmp_path: Path
) -> None:
    data = load(job(text), tmp_path / "data")
    certificate, metrics, _ = check(data, body(), tmp_path / "model.onnx")
    assert [output.name for output in certificate.outputs] == ["logits"]
    assert {metric.name for metric in metrics} == {
        *("loss", "perplexity", "bits_per_byte", "accuracy"),
    }
    signature = signature_of(data)
    assert [(i.name, i.datatype, i.shape) for i in signature.inputs] == [
        ("bytes", "UINT8", ("batch", "length"))
    ]
    assert signature.outputs[0].shape == ("batch", "length", 256)


class LooksAhead(nn.Module):
    """Says of each place what the last byte of the row is."""

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        last = nn.functional.one_hot(rows[:, -1:].long(), 256).float()
        return last.expand(-1, rows.shape[1], -1) + 0 * rows.float().unsqueeze(2)


def test_the_gate_refuses_a_graph_that_looks_ahead(text: Path, tmp_path: Path) -> None:
    data = load(job(text), tmp_path / "data")
    with pytest.raises(GateFailed, match="'logits' before place 1, with other bytes from there on"):
        check(data, LooksAhead(), tmp_path / "model.onnx")


# The specification


def test_the_fields_come_over_the_wire_with_their_defaults(tmp_path: Path) -> None:
    message = pb.TrainingJobSpec()
    message.dataset.lines.paths.append("text")
    message.model.gpt.SetInParent()
    read = spec.with_defaults(spec_from_pb(message))
    assert read.dataset == spec.LinesDataset(paths=("text",), context_length=256)
    assert read.model == spec.GptModel(width=128, layers=4, heads=4, dropout=0.0)
    (tmp_path / "text").write_bytes(b"x")
    resolved = with_real_paths(read, DataRoots([tmp_path])).dataset
    assert isinstance(resolved, spec.LinesDataset)
    assert resolved.paths == (str((tmp_path / "text").resolve()),)


def test_the_files_are_looked_for_below_the_folders_that_may_be_read() -> None:
    message = pb.TrainingJobSpec(
        epochs=1, publication=pb.Publication(model="language"), dataset=pb.Dataset()
    )
    message.dataset.lines.paths.extend(["a", "b"])
    message.model.gpt.SetInParent()
    message.loss.cross_entropy.SetInParent()
    message.optimizer.adam.SetInParent()
    request = pb.CreateTrainingJobRequest(training_job=pb.TrainingJob(spec=message))
    new, _ = new_job_from_pb(request)
    assert new.data_paths == {
        "training_job.spec.dataset.lines.paths[0]": "a",
        "training_job.spec.dataset.lines.paths[1]": "b",
    }


def wrong(**fields: Any) -> dict[str, str]:
    return dict(validate(job(Path("text"), **fields)))


def test_a_specification_of_language_that_cannot_be_names_its_field() -> None:
    assert wrong() == {}
    assert "dataset.lines.paths[0]" in wrong(dataset=spec.LinesDataset(paths=("../a",)))
    assert "dataset.lines.paths" in wrong(dataset=spec.LinesDataset(paths=()))
    long = spec.LinesDataset(paths=("a",), context_length=4097)
    assert "dataset.lines.context_length" in wrong(dataset=long)
    assert wrong(model=replace(GPT, width=18, heads=2)) == {
        "model.gpt.width": "expected a multiple of 2 · heads = 4, got 18"
    }
    assert wrong(model=replace(GPT, layers=17)).keys() == {"model.gpt.layers"}
    assert wrong(model=replace(GPT, dropout=1.0)).keys() == {"model.gpt.dropout"}
    assert wrong(model=spec.GruModel()) == {
        "model.gru": "expected gpt for a data set of lines, got gru"
    }
    assert wrong(dataset=spec.BundledDataset(name="digits")) == {
        "model.gpt": "expected a data set of lines for gpt"
    }
    assert wrong(loss=spec.KlDivergence()) == {
        "loss": "expected cross_entropy for a data set of lines, got kl"
    }
    assert wrong(preprocessing=(spec.Standardize(),)).keys() == {"preprocessing"}
    assert wrong(selection=spec.Selection(metric="perplexity")) == {}
    assert wrong(selection=spec.Selection(metric="mse")).keys() == {"selection.metric"}
