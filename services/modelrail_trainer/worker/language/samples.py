"""What a trained model writes, for people to look at."""

from __future__ import annotations

import torch
from torch import nn

_FIRST_BYTE = ord("\n")
_TEMPERATURE = 0.8
"""Below 1, likely bytes become likelier still: texts are less wild than the model's own odds."""


def samples(
    network: nn.Module, context_length: int, *, seed: int, count: int = 3, length: int = 200
) -> list[str]:
    """Returns texts that begin a line, each of `length` bytes, drawn with a generator of their own.

    What is no printable character is escaped, as in Python's literals.

    Args:
        network: Maps bytes uint8 [B, T] to logits [B, T, 256], in evaluation mode.
        context_length: Bytes that the network looks back on.
        seed: Of the generator.
        count: Number of texts.
        length: Of each, in bytes.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = torch.full((count, 1), _FIRST_BYTE, dtype=torch.uint8)  # [count, T]
    with torch.inference_mode():
        for _ in range(length):
            logits = network(rows[:, -context_length:])[:, -1]  # [count, 256]
            odds = (logits / _TEMPERATURE).softmax(dim=1)
            drawn = torch.multinomial(odds, 1, generator=generator).to(torch.uint8)  # [count, 1]
            rows = torch.cat([rows, drawn], dim=1)
    return [printable(bytes(row[1:].tolist())) for row in rows]


def printable(content: bytes) -> str:
    """Returns bytes as a text of one line."""
    text = content.decode("utf-8", "backslashreplace")
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )
