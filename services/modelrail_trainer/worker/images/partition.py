"""Which part of the data an image belongs to: at random by a seed, each class on its own."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from modelrail_trainer.failure import DataError
from modelrail_trainer.spec import Split
from modelrail_trainer.worker.images.source import UNDIVIDED, ImageSource
from modelrail_trainer.worker.part import PartOfRow


def divide(source: ImageSource, split: Split) -> npt.NDArray[np.int8]:
    """Returns the part of each image, [N].

    A part that some images are in from the start gets no others.

    Raises:
        DataError: There are less than two classes, or one has too few images.
    """
    if len(source.classes) < 2:
        raise DataError(f"expected images of at least 2 classes, got {len(source.classes)}")
    parts = source.parts.copy()
    fractions = {
        PartOfRow.TEST: split.test_fraction,
        PartOfRow.VALIDATION: split.validation_fraction,
    }
    taken = {part: of for part, of in fractions.items() if not (parts == part).any()}
    wanted = " and ".join(part.name.lower() for part in (PartOfRow.TRAIN, *sorted(taken)))
    generator = np.random.default_rng(split.seed)
    for number, name in enumerate(source.classes):
        of_class = source.targets == number
        order = generator.permutation(np.flatnonzero(of_class & (parts == UNDIVIDED)))
        already = int((of_class & (parts == PartOfRow.TRAIN)).sum())
        counts = {part: max(1, round(len(order) * of)) for part, of in taken.items()}
        if len(order) + already < sum(counts.values()) + 1:
            raise DataError(
                f"class {name!r}: expected at least {len(taken) + 1} images, so that {wanted} get "
                f"one each by the fractions of the split; got {len(order) + already}"
            )
        for part, count in counts.items():
            parts[order[:count]] = part
            order = order[count:]
        parts[order] = PartOfRow.TRAIN
    return parts
