"""The end-to-end graph: raw columns in, what the network says and the label of it out.

Operators of the default domain and `ai.onnx.ml` wherever there are any, so that every server of
ONNX runs it: a category is looked up by LabelEncoder, and what stands for it is a row of a table.
The standard has no hash of texts and no operator that finds words; MurmurHash3 and Tokenizer are
operators of every build of ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper

from modelrail_trainer.artifact import Signature, TensorSpec
from modelrail_trainer.worker.graph import LABEL_SPEC, Graph
from modelrail_trainer.worker.model_file import BATCH, LENGTH, ML_DOMAIN, ORT_DOMAIN
from modelrail_trainer.worker.table.encoding import (
    Fitted,
    FittedCategory,
    FittedHash,
    FittedNumber,
)
from modelrail_trainer.worker.table.text import (
    PADDING,
    UNKNOWN,
    FittedBytes,
    FittedWords,
)
from modelrail_trainer.worker.table.words import RE2_PATTERN

FEATURES = "features"
TOKENS = "tokens"
# Of ai.onnx.ml the one whose LabelEncoder has lists of both kinds of keys.
_VERSIONS = {ML_DOMAIN: 3, ORT_DOMAIN: 1}
_WORDS = "encode.words"
"""Axis of the words of a text."""


def end_to_end(
    bare: onnx.ModelProto, encodings: Sequence[Fitted], signature: Signature
) -> onnx.ModelProto:
    """Returns the exported network with the encodings in front of it, and a label behind.

    Args:
        bare: From features [batch, F], or tokens [batch, length], to the network's outputs.
        encodings: Of the columns, in the order of the features.
        signature: What the whole graph must look like.
    """
    graph = _TableGraph()
    features = graph.apply("Concat", *(graph.encode(e) for e in encodings), axis=1)
    versions = {domain: _VERSIONS[domain] for domain in domains_of(encodings)}
    return graph.before(bare, features, signature, domains=versions)


def domains_of(encodings: Sequence[Fitted]) -> tuple[str, ...]:
    """Returns the domains of the operators that a graph uses beside the default ones."""
    own = any(isinstance(encoding, FittedHash | FittedWords) for encoding in encodings)
    return (ML_DOMAIN, ORT_DOMAIN) if own else (ML_DOMAIN,)


def end_to_end_signature(
    bare: Signature, encodings: Sequence[Fitted], labels: tuple[str, ...]
) -> Signature:
    """Returns the signature of the whole graph: a value for each column in, the label out as well.

    Args:
        bare: Of the network.
        encodings: Of the columns.
        labels: Names of the classes; none for regression.
    """
    inputs = tuple(_input(encoding) for encoding in encodings)
    if not labels:
        return Signature(inputs, bare.outputs)
    return Signature(inputs, (*bare.outputs, LABEL_SPEC))


def _input(encoding: Fitted) -> TensorSpec:
    shape: tuple[int | str, ...] = (BATCH, 1)
    datatype, meaning = "BYTES", "text, empty where it is missing"
    if isinstance(encoding, FittedNumber):
        datatype = "FP64" if encoding.is_double else "FP32"
        meaning = "number, NaN where it is missing"
    elif isinstance(encoding, FittedBytes):
        datatype, shape = "UINT8", (BATCH, LENGTH)
        meaning = "text in UTF-8, zeros after its end"
    return TensorSpec(name=encoding.name, datatype=datatype, shape=shape, meaning=meaning)


class _TableGraph(Graph):
    """What is done to columns."""

    def encode(self, encoding: Fitted) -> str:
        """Adds the nodes of an encoding; returns its features, [batch, size].

        Those of a text are tokens, [batch, length], as many as the longest text has, and one 0.
        """
        match encoding:
            case FittedNumber():
                return self._number(encoding)
            case FittedCategory():
                return self._category(encoding)
            case FittedHash():
                return self._hash(encoding)
            case FittedWords():
                return self._words(encoding)
            case FittedBytes():
                return self._bytes(encoding)

    def _number(self, number: FittedNumber) -> str:
        missing = self.apply("IsNaN", number.name)
        x = self.apply("Where", missing, self.constant(np.array(number.fill)), number.name)
        if number.log:
            x = self.apply("Max", x, self.constant(np.array(0, np.float32)))
            x = self.apply("Log", self.apply("Add", x, self.constant(np.array(1, np.float32))))
        x = self.apply("Sub", x, self.constant(np.array(number.shift)))
        if number.is_double:
            x = self.apply("Cast", x, to=TensorProto.FLOAT)
        x = self.apply("Div", x, self.constant(np.array(number.width)))
        if not number.has_indicator:
            return x
        indicator = self.apply("Cast", missing, to=TensorProto.FLOAT)
        return self.apply("Concat", x, indicator, axis=1)

    def _category(self, category: FittedCategory) -> str:
        # [batch, 1] ▸ [batch]: a row of the table is then [batch, size].
        text = self.apply("Reshape", category.name, self.constant(np.array([-1], np.int64)))
        place = self.apply(
            "LabelEncoder",
            text,
            domain=ML_DOMAIN,
            keys_strings=list(category.keys),
            values_int64s=list(range(len(category.keys))),
            default_int64=len(category.keys),
        )
        return self.apply("Gather", self.constant(category.table), place, axis=0)

    def _hash(self, hashed: FittedHash) -> str:
        # [batch, 1] ▸ [batch]: the features are then [batch, size].
        text = self.apply("Reshape", hashed.name, self.constant(np.array([-1], np.int64)))
        number = self.apply("MurmurHash3", text, domain=ORT_DOMAIN, positive=1, seed=0)
        buckets = self.constant(np.array(hashed.buckets, np.int64))
        place = self.apply("Mod", self.apply("Cast", number, to=TensorProto.INT64), buckets)
        return self.apply("OneHot", place, buckets, self.constant(np.array([0, 1], np.float32)))

    def _words(self, words: FittedWords) -> str:
        text = self.apply("Reshape", words.name, self.constant(np.array([-1], np.int64)))  # [batch]
        if words.lower_case:
            # In the locale "C", which every machine has, just A to Z have a lower case.
            text = self.apply("StringNormalizer", text, case_change_action="LOWER", locale="C")
        found = self.apply(
            "Tokenizer",
            text,
            domain=ORT_DOMAIN,
            tokenexp=RE2_PATTERN,
            mark=0,
            mincharnum=1,
            pad_value="",
        )  # [batch, words of the longest text]
        # The checker of ONNX knows nothing of the operator, and crashes on a LabelEncoder without
        # the type of its input.
        self.values.append(
            helper.make_tensor_value_info(found, TensorProto.STRING, [BATCH, _WORDS])
        )
        tokens = self.apply(
            "LabelEncoder",
            found,
            domain=ML_DOMAIN,
            keys_strings=["", *words.words],
            values_int64s=[PADDING, *range(UNKNOWN + 1, words.tokens)],
            default_int64=UNKNOWN,
        )
        return self._row(self._ended(tokens), words.size)

    def _bytes(self, text: FittedBytes) -> str:
        content = self._ended(self.apply("Cast", text.name, to=TensorProto.INT64))
        is_filled = self.apply("Cast", content, to=TensorProto.BOOL)
        ones = self.apply("Add", self._zeros(content), self.constant(np.array(1, np.int64)))
        places = self.apply("CumSum", ones, self.constant(np.array(1, np.int64)))  # from 1
        filled = self.apply("Where", is_filled, places, self._zeros(content))
        # The place of the last byte that is not 0; what follows is no part of the text.
        axis = self.constant(np.array([1], np.int64))
        end = self.apply("ReduceMax", filled, axis, keepdims=1)  # [batch, 1]
        is_text = self.apply("LessOrEqual", places, end)
        tokens = self.apply("Where", is_text, self.apply("Add", content, ones), filled)
        return self._row(tokens, text.size)

    def _zeros(self, like: str) -> str:
        return self.apply("Sub", like, like)

    def _ended(self, tokens: str) -> str:
        """Adds a 0 to each row: networks read rows of one token or more."""
        return self.apply("Pad", tokens, self.constant(np.array([0, 0, 0, 1], np.int64)))

    def _row(self, tokens: str, size: int) -> str:
        bounds = (self.constant(np.array([place], np.int64)) for place in (0, size, 1))
        return self.apply("Slice", tokens, *bounds)
