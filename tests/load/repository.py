"""Folders of models in Triton's layout, made of the measured files."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from tests.load.raw import BATCH_SIZES


def add_model(
    repository: Path, name: str, file: Path, *, batching: bool, graphs: bool = False
) -> None:
    """Adds a model of one version.

    Args:
        repository: The folder, made if it is not there.
        name: Name of the model.
        file: The ONNX file. It is linked, not copied: a thousand models are one file on disk.
        batching: Whether requests of several callers are run together.
        graphs: Whether runs are recorded on a GPU as CUDA graphs, for batches of fixed sizes.
    """
    version = repository / name / "1"
    version.mkdir(parents=True)
    try:
        os.link(file, version / "model.onnx")
    except OSError:  # another file system
        (version / "model.onnx").symlink_to(file.absolute())
    config = ['platform: "onnxruntime_onnx"', f"max_batch_size: {BATCH_SIZES[-1]}"]
    if batching:
        config.append("dynamic_batching { }")
    if graphs:
        config.append("instance_group { kind: KIND_GPU }\noptimization { cuda { graphs: true } }")
        sizes = f'value {{ string_value: "{list(BATCH_SIZES)}" }}'
        config.append(f'parameters {{ key: "batch_buckets" {sizes} }}')
    (version.parent / "config.pbtxt").write_text("\n".join(config) + "\n")


def add_models(repository: Path, names: Iterable[str], file: Path) -> None:
    """Adds the same file under many names, with batching."""
    repository.mkdir(parents=True, exist_ok=True)
    for name in names:
        add_model(repository, name, file, batching=True)
