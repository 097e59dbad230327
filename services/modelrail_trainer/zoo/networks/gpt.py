"""A decoder in the manner of GPT-2 (Radford et al., 2019), over bytes."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from modelrail_trainer.zoo.gpt import GptModel

_BYTE_VALUES = 256
_STANDARD_DEVIATION = 0.02
"""Of the weights at the start, as in GPT-2."""
_LONGEST_WAVE = 10_000.0


class CausalAttention(nn.Module):
    """Every byte looks at itself and at the bytes before it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor, waves: Tensor) -> Tensor:
        """Maps [B, T, D], and the angles of the places [T, D / 2H], to [B, T, D]."""
        queries, keys, values = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)  # [B, H, T, D / H]
            for part in self.queries_keys_values(x).chunk(3, dim=2)
        )
        attended = nn.functional.scaled_dot_product_attention(
            rotated(queries, waves), rotated(keys, waves), values, is_causal=True
        )  # [B, H, T, D / H]
        outputs: Tensor = self.output(attended.transpose(1, 2).flatten(2))
        return outputs


class DecoderLayer(nn.Module):
    """x + attention(norm(x)), then x + perceptron(norm(x))."""

    def __init__(self, model: GptModel) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(model.width)
        self.attention = CausalAttention(model.width, model.heads)
        self.perceptron = nn.Sequential(
            nn.LayerNorm(model.width),
            nn.Linear(model.width, 4 * model.width),
            nn.GELU(),
            nn.Linear(4 * model.width, model.width),
        )
        self.dropout = nn.Dropout(model.dropout)

    def forward(self, x: Tensor, waves: Tensor) -> Tensor:
        """Maps [B, T, D], and the angles of the places [T, D / 2H], to [B, T, D]."""
        x = x + self.dropout(self.attention(self.attention_norm(x), waves))
        summed: Tensor = x + self.dropout(self.perceptron(x))
        return summed


class Gpt(nn.Module):
    """Decoder layers over embedded bytes; at each place the scores of the byte that comes next."""

    def __init__(self, model: GptModel) -> None:
        super().__init__()
        self.head_size = model.width // model.heads
        self.embedding = nn.Embedding(_BYTE_VALUES, model.width)
        self.dropout = nn.Dropout(model.dropout)
        self.layers = nn.ModuleList(DecoderLayer(model) for _ in range(model.layers))
        self.norm = nn.LayerNorm(model.width)
        for name, weights in self.named_parameters():
            if weights.ndim < 2:
                continue
            # Each layer adds twice to what passes by, which would grow with their number.
            adds = name.endswith(("attention.output.weight", "perceptron.3.weight"))
            deviation = _STANDARD_DEVIATION / (math.sqrt(2 * model.layers) if adds else 1)
            nn.init.normal_(weights, std=deviation)

    def forward(self, rows: Tensor) -> Tensor:
        """Maps bytes uint8 [B, T] to logits [B, T, 256]."""
        x = self.dropout(self.embedding(rows.long()))  # [B, T, D]
        waves = angles(rows.shape[1], self.head_size, rows.device)  # [T, D / 2H]
        for layer in self.layers:
            x = layer(x, waves)
        # The vectors that stand for the bytes also tell how well each fits (Press and Wolf, 2017).
        logits: Tensor = self.norm(x) @ self.embedding.weight.T
        return logits


def angles(length: int, size: int, device: torch.device | None = None) -> Tensor:
    """Returns by how much each pair of numbers is turned at each place, [length, size / 2]."""
    places = torch.arange(length, dtype=torch.float32, device=device).unsqueeze(1)  # [T, 1]
    pairs = torch.arange(0, size, 2, dtype=torch.float32, device=device)  # [size / 2]
    return places * _LONGEST_WAVE ** (-pairs / size)


def rotated(x: Tensor, waves: Tensor) -> Tensor:
    """Turns [B, H, T, S] by angles [T, S / 2]; pair i is made of the numbers i and i + S / 2.

    The product of a turned query and a turned key depends on how far they are apart, and not on
    where they are (Su et al., 2021).
    """
    first, second = x.chunk(2, dim=3)  # [B, H, T, S / 2]
    cosine, sine = waves.cos(), waves.sin()
    return torch.cat([first * cosine - second * sine, first * sine + second * cosine], dim=3)
