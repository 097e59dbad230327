"""The acceptance gate of the end-to-end graph: it computes what Python computes on raw images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import nn

from modelrail_trainer.failure import GateFailed
from modelrail_trainer.handover.artifact import OutputParity, Signature
from modelrail_trainer.spec import Color
from modelrail_trainer.worker.export import acceptance, parity
from modelrail_trainer.worker.export.reference import ReferenceCase
from modelrail_trainer.worker.images.dataset import Images
from modelrail_trainer.worker.images.graph import IMAGE
from modelrail_trainer.worker.images.source import Pixels
from modelrail_trainer.worker.progress import made_progress

_SEED = 0


def check_end_to_end(
    path: Path, module: nn.Module, signature: Signature, images: Images
) -> tuple[tuple[OutputParity, ...], tuple[ReferenceCase, ...]]:
    """Runs the gate.

    Returns the worst difference of each output of numbers, and the images that were compared with
    what Python makes of them.

    Args:
        path: The graph.
        module: From pixels to the network's outputs, in evaluation mode.
        signature: What the graph must look like.
        images: Their raw validation images are compared, and black ones, white ones and noise, in
            several sizes where any size is taken.

    Raises:
        GateFailed: The message names the rule that is broken, expected and got.
    """
    parity.check_file(path, signature)
    samples = [*images.raw, *_edge_images(images)]
    rows = np.stack([images.prepare(image) for image in samples])  # [N, *row_shape]
    expected = acceptance.python_outputs(module, signature, rows)
    worst = dict.fromkeys(expected, 0.0)
    for level in parity.LEVELS:
        session = parity.open_session(path, level, threads=torch.get_num_threads())
        some = samples if level in parity.FULL_LEVELS else samples[: parity.FEW_ROWS]
        for batch_size in parity.batch_sizes_of(signature):
            for chosen in _batches(some, batch_size):
                made_progress()
                batch = np.stack([samples[place] for place in chosen])
                got = _run(session, signature, batch)
                for name in expected:
                    what = (
                        f"output {name!r} of the end-to-end graph for {batch_size} images of shape "
                        f"{list(batch.shape[1:])}, against Python"
                    )
                    difference = parity.compare(got[name], expected[name][chosen], what)
                    worst[name] = max(worst[name], difference)
                parity.check_labels(got, signature)
    parities = tuple(OutputParity(name, difference) for name, difference in worst.items())
    kept = (
        ReferenceCase(
            {IMAGE: np.stack([samples[place] for place in places])},
            {name: values[places] for name, values in expected.items()},
        )
        for places in _places_by_shape(samples)
    )
    return parities, tuple(kept)


def _edge_images(images: Images) -> Iterator[Pixels]:
    generator = np.random.default_rng(_SEED)
    height, width = images.height, images.width
    sizes = [(height, width)]
    if images.any_size:
        # Smaller and larger, each side on its own, and a single pixel.
        sizes += [
            (1, 1),
            (max(1, height // 2), 2 * width + 1),
            (3 * height + 2, max(1, width // 3)),
            (2 * height - 1, 2 * width + 3),
        ]
    for rows, columns in sizes:
        shape = (rows, columns) if images.color is Color.GREY else (rows, columns, 3)
        yield np.zeros(shape, np.uint8)
        yield np.full(shape, 255, np.uint8)
        yield generator.integers(0, 256, shape, np.uint8)


def _batches(samples: list[Pixels], batch_size: int) -> Iterator[list[int]]:
    """Yields the places of images of one size, each image at least once, always `batch_size`."""
    for places in _places_by_shape(samples):
        full = -(-len(places) // batch_size) * batch_size
        # Taken again from the front until the last batch is full.
        filled = np.resize(places, full).reshape(-1, batch_size)
        yield from filled.tolist()


def _places_by_shape(samples: list[Pixels]) -> list[list[int]]:
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for place, image in enumerate(samples):
        by_shape.setdefault(image.shape, []).append(place)
    return [*by_shape.values()]


def _run(
    session: onnxruntime.InferenceSession, signature: Signature, batch: Pixels
) -> dict[str, parity.Floats]:
    names = [output.name for output in signature.outputs]
    try:
        outputs = session.run(names, {IMAGE: batch})
    except Exception as error:  # ONNX Runtime has an own error class for each status
        raise GateFailed(
            f"ONNX Runtime fails on images of shape {list(batch.shape)}: {str(error)[:500]}"
        ) from error
    return dict(zip(names, outputs, strict=True))
