"""The transformer's encoder (Vaswani et al., 2017) over rows of tokens; token 0 is padding.

Layers normalize their input, not their sum (Xiong et al., 2020), which trains without warm-up.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from modelrail_trainer.zoo.transformer import TransformerModel

# Its exponential is exactly 0 in float32, so padding gets no attention; unlike -∞ it leaves a row
# of padding only without NaN.
_NO_ATTENTION = -1e9


class Attention(nn.Module):
    """Every token looks at every token of its row that is no padding."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        """Maps [B, T, D] and a mask that is true at padding, [B, T], to [B, T, D]."""
        queries, keys, values = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)  # [B, H, T, D / H]
            for part in self.queries_keys_values(x).chunk(3, dim=2)
        )
        scores = queries @ keys.transpose(2, 3) / math.sqrt(queries.shape[3])  # [B, H, T, T]
        scores = scores.masked_fill(padding[:, None, None, :], _NO_ATTENTION)
        attended = self.dropout(scores.softmax(dim=3)) @ values  # [B, H, T, D / H]
        outputs: Tensor = self.output(attended.transpose(1, 2).flatten(2))
        return outputs


class EncoderLayer(nn.Module):
    """x + attention(norm(x)), then x + perceptron(norm(x))."""

    def __init__(self, model: TransformerModel) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(model.width)
        self.attention = Attention(model.width, model.heads, model.dropout)
        self.perceptron = nn.Sequential(
            nn.LayerNorm(model.width),
            nn.Linear(model.width, model.inner_width),
            nn.ReLU(),
            nn.Linear(model.inner_width, model.width),
        )
        self.dropout = nn.Dropout(model.dropout)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        """Maps [B, T, D] and the mask of padding [B, T] to [B, T, D]."""
        x = x + self.dropout(self.attention(self.attention_norm(x), padding))
        summed: Tensor = x + self.dropout(self.perceptron(x))
        return summed


class Transformer(nn.Module):
    """Encoder layers over embedded tokens; the mean over a row's tokens tells the outputs."""

    def __init__(self, model: TransformerModel, tokens: int, outputs: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, model.width, padding_idx=0)
        self.dropout = nn.Dropout(model.dropout)
        self.layers = nn.ModuleList(EncoderLayer(model) for _ in range(model.layers))
        self.norm = nn.LayerNorm(model.width)
        self.head = nn.Linear(model.width, outputs)

    def forward(self, rows: Tensor) -> Tensor:
        """Maps tokens int64 [B, T] to [B, outputs]."""
        padding = rows == 0  # [B, T]
        embedded = self.embedding(rows)  # [B, T, D]
        x = self.dropout(embedded + positions(rows.shape[1], embedded.shape[2], rows.device))
        for layer in self.layers:
            x = layer(x, padding)
        kept = (~padding).unsqueeze(2).to(x.dtype)  # [B, T, 1]
        mean = (self.norm(x) * kept).sum(dim=1) / kept.sum(dim=1).clamp(min=1)  # [B, D]
        outputs: Tensor = self.head(mean)
        return outputs


def positions(length: int, width: int, device: torch.device | None = None) -> Tensor:
    """Returns sines and cosines that tell the place of a token, [length, width], width even."""
    places = torch.arange(length, dtype=torch.float32, device=device).unsqueeze(1)  # [T, 1]
    # Wave lengths from 2π to 10000 · 2π, as in section 3.5 of the paper.
    pairs = torch.arange(0, width, 2, dtype=torch.float32, device=device)  # [D / 2]
    frequencies = 10_000 ** (-pairs / width)  # [D / 2]
    angles = places * frequencies  # [T, D / 2]
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)
