"""How rows are read as images, and how often an image can be halved."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Annotated

from modelrail_trainer.facts import DatasetFacts
from modelrail_trainer.rules.bounds import Widths
from modelrail_trainer.rules.violation import Violation
from modelrail_trainer.zoo.architecture import MAX_BLOCKS, MAX_CHANNELS

BlockChannels = Annotated[tuple[int, ...], Widths("blocks", MAX_BLOCKS, MAX_CHANNELS)]
StageChannels = Annotated[tuple[int, ...], Widths("stages", MAX_BLOCKS, MAX_CHANNELS)]


def image_shape(row_shape: Sequence[int]) -> tuple[int, int, int]:
    """Returns channels, height and width of a row [H, W] (one channel) or [C, H, W]."""
    height, width = row_shape[-2:]
    return (row_shape[0] if len(row_shape) == 3 else 1), height, width


def image_violations(
    field: str, channels: tuple[int, ...], facts: DatasetFacts
) -> Iterator[Violation]:
    """Finds why rows are no images, or too small for so many blocks.

    Args:
        field: The architecture's path.
        channels: Of its blocks.
        facts: What it is trained on.
    """
    if len(facts.row_shape) not in (2, 3):
        yield Violation(
            field,
            f"expected a data set of images, got rows of shape {list(facts.row_shape)}",
        )
        return
    # Each block halves the image, rounding down; a side must not vanish. A residual network halves
    # it once less, so its last image has two rows: one pixel alone has no variance to normalize by.
    height, width = facts.row_shape[-2:]
    most = int(math.log2(min(height, width)))
    if MAX_BLOCKS >= len(channels) > most:
        yield Violation(
            f"{field}.channels",
            f"expected at most {most} blocks, because each halves the {height} by {width} image; "
            f"got {len(channels)}",
        )
