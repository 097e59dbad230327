"""Points on two rings, and a network of bumps that tells which ring a point is on."""

import torch
from torch import Tensor, nn

from modelrail_trainer.user_code import CustomData, ModelFacts


def load(rows: int) -> CustomData:
    """Returns points on an inner and an outer ring; the ring is the class."""
    ring = torch.arange(rows) % 2  # [rows]
    radius = 1 + ring + 0.2 * torch.randn(rows)  # the trainer has seeded torch and NumPy
    angle = 2 * torch.pi * torch.rand(rows)
    points = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)  # [rows, 2]
    return CustomData(
        inputs=points.numpy(),
        targets=ring.numpy(),
        labels=["inner", "outer"],
        input_name="point",
        meaning="place from the middle of both rings",
    )


class Bumps(nn.Module):
    """Radial basis functions (Broomhead and Lowe, 1988) with centres that are learned."""

    def __init__(self, features: int, bumps: int, outputs: int) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.randn(bumps, features))
        self.last = nn.Linear(bumps, outputs)

    def forward(self, rows: Tensor) -> Tensor:
        """Maps rows [B, features] to logits [B, outputs]."""
        distances = (rows[:, None] - self.centres).square().sum(dim=2)  # [B, bumps]
        logits: Tensor = self.last(torch.exp(-distances))
        return logits


def build(facts: ModelFacts, bumps: int) -> nn.Module:
    """Returns a network for rows and classes of the data set."""
    return Bumps(facts.row_shape[0], bumps, facts.outputs)
