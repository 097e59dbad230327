"""The gated recurrent unit (Cho et al., 2014) over rows of tokens; token 0 is padding."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from modelrail_trainer.zoo.gru import GruModel


class GruLayer(nn.Module):
    """One layer that reads from left to right, started as torch.nn.GRU starts its own.

    The parameters are here, and not in a torch.nn.GRU, because that keeps a second list of them
    which the exporter takes for a side effect.
    """

    def __init__(self, width: int, hidden_units: int) -> None:
        super().__init__()
        started = dict(nn.GRU(width, hidden_units).named_parameters())
        self.weight_ih = started["weight_ih_l0"]  # [3H, E]
        self.weight_hh = started["weight_hh_l0"]  # [3H, H]
        self.bias_ih = started["bias_ih_l0"]  # [3H]
        self.bias_hh = started["bias_hh_l0"]  # [3H]

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, T, E] to the state after each token, [B, T, H]."""
        if torch.onnx.is_in_onnx_export():
            return self._as_operator(x)
        start = x.new_zeros(1, x.shape[0], self.weight_hh.shape[1])  # [1, B, H]
        weights: list[Tensor] = [self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh]
        states, _ = torch.gru(
            x,
            start,
            weights,
            has_biases=True,
            num_layers=1,
            dropout=0.0,
            train=self.training,
            bidirectional=False,
            batch_first=True,
        )
        return states

    def _as_operator(self, x: Tensor) -> Tensor:
        """Stands for the operator GRU of ONNX in an export; its values are not computed.

        The exporter would write out the loop over the tokens, for rows of one length only.
        """
        batch, length, _ = x.shape
        hidden_units = self.weight_hh.shape[1]
        weights = [self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh]
        w, r, bias_w, bias_r = (_update_gate_first(part) for part in weights)
        states = torch.onnx.ops.symbolic(
            "GRU",
            (x.transpose(0, 1), w[None], r[None], torch.cat([bias_w, bias_r])[None]),
            # The state is reset after it is mapped, as torch does it.
            attrs={"hidden_size": hidden_units, "linear_before_reset": 1},
            dtype=x.dtype,
            shape=(length, 1, batch, hidden_units),
            version=14,
        )  # [T, 1, B, H]
        return states.squeeze(1).transpose(0, 1)


def _update_gate_first(weights: Tensor) -> Tensor:
    """Returns the gates of [3H, …] in the order of ONNX; torch has the reset gate before it."""
    size = weights.shape[0] // 3
    return torch.cat([weights[size : 2 * size], weights[:size], weights[2 * size :]])


class Gru(nn.Module):
    """Reads each row token by token; the state after its last token tells the outputs.

    Padding follows the tokens. What is computed there reaches no output, because a recurrent layer
    looks only back: the state after the last token is taken, and the layer that reads from right to
    left gets each row reversed within its own length, so that its padding comes last as well.
    """

    def __init__(self, model: GruModel, tokens: int, outputs: int) -> None:
        super().__init__()
        directions = 2 if model.bidirectional else 1
        self.embedding = nn.Embedding(tokens, model.embedding_size, padding_idx=0)
        widths = [model.embedding_size] + [directions * model.hidden_units] * (model.layers - 1)
        self.forwards = nn.ModuleList(GruLayer(width, model.hidden_units) for width in widths)
        self.backwards = nn.ModuleList(
            GruLayer(width, model.hidden_units) for width in (widths if model.bidirectional else [])
        )
        self.head = nn.Linear(directions * model.hidden_units, outputs)

    def forward(self, rows: Tensor) -> Tensor:
        """Maps tokens int64 [B, T] to [B, outputs]."""
        lengths = (rows != 0).sum(dim=1, keepdim=True)  # [B, 1]
        places = torch.arange(rows.shape[1], device=rows.device).unsqueeze(0)  # [1, T]
        # Where each place's token stands in the reversed row; padding stays where it is.
        mirrored = torch.where(places < lengths, lengths - 1 - places, places)  # [B, T]
        last = (lengths - 1).clamp(min=0)  # [B, 1], 0 for a row of padding only

        x = self.embedding(rows)  # [B, T, E]
        for layer in range(len(self.forwards)):
            states = self.forwards[layer](x)  # [B, T, H]
            final = _at(states, last)  # [B, 1, H]
            if self.backwards:
                reversed_states = self.backwards[layer](_at(x, mirrored))  # [B, T, H]
                final = torch.cat([final, _at(reversed_states, last)], dim=2)  # [B, 1, 2H]
                states = torch.cat([states, _at(reversed_states, mirrored)], dim=2)  # [B, T, 2H]
            x = states
        outputs: Tensor = self.head(final.squeeze(1))
        return outputs


def _at(x: Tensor, places: Tensor) -> Tensor:
    """Returns x at other places: [B, T, D] and int64 [B, S] give [B, S, D]."""
    return x.gather(1, places.unsqueeze(2).expand(-1, -1, x.shape[2]))
