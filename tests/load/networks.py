"""The networks that the measurements run: a tiny one, a convolutional one, a transformer."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional


def mlp() -> nn.Module:
    """Returns 64 → 256 → 256 → 10 with ReLU: so small that everything else is what costs."""
    return nn.Sequential(
        nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
    )


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a short cut (He et al. 2015, figure 2)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(),
            nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
        )
        self.short_cut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.short_cut = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride, bias=False),
                nn.BatchNorm2d(channels_out),
            )

    def forward(self, images: Tensor) -> Tensor:
        summed: Tensor = self.body(images) + self.short_cut(images)  # (batch, out, h, w)
        return functional.relu(summed)


def resnet18() -> nn.Module:
    """Returns the 18-layer network of He et al. 2015, table 1: 3x224x224 to 1000 classes."""
    widths = [64, 64, 128, 256, 512]
    blocks: list[nn.Module] = []
    for stage in range(4):
        stride = 1 if stage == 0 else 2
        blocks.append(ResidualBlock(widths[stage], widths[stage + 1], stride))
        blocks.append(ResidualBlock(widths[stage + 1], widths[stage + 1], 1))
    return nn.Sequential(
        nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2, padding=1),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(512, 1000),
    )


class EncoderLayer(nn.Module):
    """Attention and feed-forward, each added to its input and normalised after (BERT)."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.attended = nn.Linear(width, width)
        self.attended_norm = nn.LayerNorm(width, eps=1e-12)
        self.grow = nn.Linear(width, inner)
        self.shrink = nn.Linear(inner, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, states: Tensor, bias: Tensor) -> Tensor:
        def split(projected: Tensor) -> Tensor:
            heads = projected.reshape(*projected.shape[:2], self.heads, -1)
            return heads.transpose(1, 2)  # (batch, heads, t, d)

        attention = functional.scaled_dot_product_attention(
            split(self.query(states)),
            split(self.key(states)),
            split(self.value(states)),
            attn_mask=bias,
        )
        mixed = self.attended(attention.transpose(1, 2).flatten(2))  # (batch, t, width)
        states = self.attended_norm(states + mixed)
        out: Tensor = self.norm(states + self.shrink(functional.gelu(self.grow(states))))
        return out


class SentenceEncoder(nn.Module):
    """BERT, the mean of its last states over the tokens that the mask keeps, at length 1.

    The sizes are those of all-MiniLM-L6-v2, whose weights `load` takes.
    """

    def __init__(self) -> None:
        super().__init__()
        width = 384
        self.words = nn.Embedding(30522, width)
        self.positions = nn.Embedding(512, width)
        self.kinds = nn.Embedding(2, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.layers = nn.ModuleList(EncoderLayer(width, heads=12, inner=1536) for _ in range(6))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Returns embeddings (batch, 384) of `input_ids` and `attention_mask`, both (batch, t)."""
        kept = attention_mask.to(torch.float32)
        positions = self.positions.weight[: input_ids.shape[1]]
        states = self.norm(self.words(input_ids) + positions + self.kinds.weight[0])
        bias = ((1.0 - kept) * torch.finfo(torch.float32).min)[:, None, None, :]
        for layer in self.layers:
            states = layer(states, bias)
        weights = kept.unsqueeze(2)
        mean = (states * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
        return functional.normalize(mean, dim=1)

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Takes the weights of a BERT as Hugging Face's transformers names them.

        Raises:
            KeyError: A weight is missing.
        """
        layer_names = {
            "query": "attention.self.query",
            "key": "attention.self.key",
            "value": "attention.self.value",
            "attended": "attention.output.dense",
            "attended_norm": "attention.output.LayerNorm",
            "grow": "intermediate.dense",
            "shrink": "output.dense",
            "norm": "output.LayerNorm",
        }
        names = {
            "words": "embeddings.word_embeddings",
            "positions": "embeddings.position_embeddings",
            "kinds": "embeddings.token_type_embeddings",
            "norm": "embeddings.LayerNorm",
        }
        for index in range(len(self.layers)):
            for ours, theirs in layer_names.items():
                names[f"layers.{index}.{ours}"] = f"encoder.layer.{index}.{theirs}"
        state = {}
        for ours in self.state_dict():
            module, _, kind = ours.rpartition(".")
            state[ours] = weights[f"{names[module]}.{kind}"]
        self.load_state_dict(state)
