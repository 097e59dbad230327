"""Exports the network of images with their preparation, and proves it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
from torch import nn

from modelrail_trainer.handover.artifact import Signature
from modelrail_trainer.spec import Task
from modelrail_trainer.worker.export.model_file import describe
from modelrail_trainer.worker.images.acceptance import check_end_to_end
from modelrail_trainer.worker.images.dataset import Images
from modelrail_trainer.worker.images.graph import end_to_end, end_to_end_signature
from modelrail_trainer.worker.training_data import EndToEnd


@dataclass(frozen=True, slots=True)
class RawImages:
    """Images as their files have them, as `RawRows`."""

    images: Images

    def remarks(self) -> Iterator[str]:
        """Yields what the images are, and which were left out."""
        images = self.images
        sizes = "of any size, resized" if images.any_size else "all of one size"
        yield f"{len(images.labels)} classes; {images.color} images {sizes}"
        yield from images.remarks

    def export(
        self, bare: onnx.ModelProto, signature: Signature, module: nn.Module, path: Path
    ) -> EndToEnd:
        """Writes the graph from raw images to answers, and runs the gate on it."""
        images = self.images
        size = images.height, images.width
        whole_signature = end_to_end_signature(
            signature, images.color, *size, any_size=images.any_size
        )
        if not signature.has_batch:
            whole_signature = whole_signature.of_one_row()
        resized_to = size if images.any_size else None
        whole = end_to_end(bare, whole_signature, images.color, resized_to)
        describe(whole, whole_signature, Task.CLASSIFICATION)
        onnx.save(whole, path)
        parity, cases = check_end_to_end(path, module, whole_signature, images)
        return EndToEnd(whole_signature, parity, cases)
