"""The end-to-end graph: pixels of any size in, what the network says and the label of it out.

Operators of the default domain only, and `resize.py` computed by them: whole numbers for the
weights, 32-bit floats that hold whole numbers for the sums.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto

from modelrail_trainer.handover.artifact import BATCH, Signature, TensorSpec, ValueRange
from modelrail_trainer.spec import Color
from modelrail_trainer.worker.export.graph import LABEL_SPEC, Graph
from modelrail_trainer.worker.images.decoding import MAX_RAW_SIDE
from modelrail_trainer.worker.images.resize import WEIGHT_SUM

IMAGE = "image"
PIXELS = "pixels"


def end_to_end(
    bare: onnx.ModelProto,
    signature: Signature,
    color: Color,
    resized_to: tuple[int, int] | None,
) -> onnx.ModelProto:
    """Returns the exported network with the preparation of images in front, and a label behind.

    Args:
        bare: From pixels [batch, H, W] or [batch, 3, H, W] to the network's outputs.
        signature: What the whole graph must look like.
        color: Of the images.
        resized_to: Height and width; None: images come in the size of the network.
    """
    graph = _ImageGraph()
    # From here on the channels stand before height and width, as the network has them.
    if color is Color.GREY:
        image = graph.apply("Unsqueeze", IMAGE, graph.whole(1))
    else:
        image = graph.apply("Transpose", IMAGE, perm=[0, 3, 1, 2])
    if resized_to is not None:
        image = graph.resize(image, *resized_to)
    if color is Color.GREY:
        image = graph.apply("Squeeze", image, graph.whole(1))
    return graph.before(bare, image, signature)


def end_to_end_signature(
    bare: Signature, color: Color, height: int, width: int, *, any_size: bool
) -> Signature:
    """Returns the signature of the whole graph: an image in, the label out as well.

    Args:
        bare: Of the network.
        color: Of the images.
        height: Of an image as the network reads it, in pixels.
        width: Likewise.
        any_size: Whether images of any size are resized to that.
    """
    size: tuple[int | str, ...] = ("height", "width") if any_size else (height, width)
    image = TensorSpec(
        name=IMAGE,
        datatype="UINT8",
        shape=(BATCH, *size) if color is Color.GREY else (BATCH, *size, 3),
        meaning="grey pixels" if color is Color.GREY else "pixels: red, green, blue",
        value_range=ValueRange(0.0, 255.0),
    )
    return Signature((image,), (*bare.outputs, LABEL_SPEC))


class _ImageGraph(Graph):
    """What is done to pixels."""

    def whole(self, *values: int) -> str:
        """Adds whole numbers, [len(values)]."""
        return self.constant(np.array(values, np.int64))

    def real(self, value: float) -> str:
        """Adds a number, []."""
        return self.constant(np.array(value, np.float32))

    def resize(self, image: str, height: int, width: int) -> str:
        """Adds the resizing of uint8 [batch, C, h, w] to [batch, C, height, width]."""
        x = self.apply("Cast", image, to=TensorProto.FLOAT)
        columns = self.apply("Transpose", self._weights(image, 3, width), perm=[1, 0])  # [w, width]
        x = self._rounded(self.apply("MatMul", x, columns))  # [batch, C, h, width]
        rows = self._weights(image, 2, height)  # [height, h]
        x = self._rounded(self.apply("MatMul", rows, x))  # [batch, C, height, width]
        return self.apply("Cast", x, to=TensorProto.UINT8)

    def _weights(self, image: str, axis: int, after: int) -> str:
        """Adds the weights of a side, [after, side]; see `resize.weights`."""
        side = self.apply("Shape", image, start=axis, end=axis + 1)  # [1]
        # A side that is too long is an index outside of this list, which ends the run: the weights
        # would take memory that the image does not.
        above = self.apply("Sub", side, self.whole(1))
        excess = self.apply("Div", above, self.whole(MAX_RAW_SIDE))
        side = self.apply("Mul", side, self.apply("Gather", self.whole(1), excess))
        scalar = self.apply("Squeeze", side, self.whole(0))  # []
        zero, one = (self.constant(np.array(value, np.int64)) for value in (0, 1))
        places = self.apply("Range", zero, scalar, one)  # [side]
        twice = self.apply("Add", self.apply("Mul", places, self.whole(2)), self.whole(1))
        before = self.apply("Mul", twice, self.whole(after))  # [side], centres
        odd = self.constant(2 * np.arange(after, dtype=np.int64)[:, None] + 1)  # [after, 1]
        centres = self.apply("Mul", odd, side)  # [after, 1]
        distance = self.apply("Abs", self.apply("Sub", before, centres))  # [after, side]
        reach = self.apply("Mul", self.apply("Max", side, self.whole(after)), self.whole(2))
        triangle = self.apply("Max", self.apply("Sub", reach, distance), self.whole(0))
        total = self.apply("ReduceSum", triangle, self.whole(1), keepdims=1)  # [after, 1]
        # An image without pixels has no weights, and dividing by 0 would end the process.
        total = self.apply("Max", total, self.whole(1))
        doubled = self.apply("Mul", triangle, self.whole(2 * WEIGHT_SUM))
        divisor = self.apply("Mul", total, self.whole(2))
        rounded = self.apply("Div", self.apply("Add", doubled, total), divisor)
        return self.apply("Cast", rounded, to=TensorProto.FLOAT)

    def _rounded(self, sums: str) -> str:
        raised = self.apply("Add", sums, self.real(WEIGHT_SUM / 2))
        means = self.apply("Floor", self.apply("Div", raised, self.real(WEIGHT_SUM)))
        return self.apply("Min", means, self.real(255))
