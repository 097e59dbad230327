"""The end-to-end graph: raw columns in, what the network says and the label of it out.

Operators of the default domain and `ai.onnx.ml` wherever there are any, so that every server of
ONNX runs it. The standard has no hash of texts and no operator that finds words; MurmurHash3 and
Tokenizer are operators of every build of ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from modelrail_trainer.encodings import Fitted
from modelrail_trainer.encodings.encoding import ML_DOMAIN, ORT_DOMAIN
from modelrail_trainer.handover.artifact import Signature
from modelrail_trainer.worker.export.graph import LABEL_SPEC, Graph

# Of ai.onnx.ml the one whose LabelEncoder has lists of both kinds of keys.
_VERSIONS = {ML_DOMAIN: 3, ORT_DOMAIN: 1}


def end_to_end(
    bare: onnx.ModelProto, encodings: Sequence[Fitted], signature: Signature
) -> onnx.ModelProto:
    """Returns the exported network with the encodings in front of it, and a label behind.

    Args:
        bare: From features [batch, F], or tokens [batch, length], to the network's outputs.
        encodings: Of the columns, in the order of the features.
        signature: What the whole graph must look like.
    """
    graph = Graph()
    features = graph.apply("Concat", *(e.add_to(graph) for e in encodings), axis=1)
    versions = {domain: _VERSIONS[domain] for domain in domains_of(encodings)}
    return graph.before(bare, features, signature, domains=versions)


def domains_of(encodings: Sequence[Fitted]) -> tuple[str, ...]:
    """Returns the domains of the operators that a graph uses beside the default one."""
    return tuple(sorted({domain for encoding in encodings for domain in encoding.domains}))


def end_to_end_signature(
    bare: Signature, encodings: Sequence[Fitted], labels: tuple[str, ...]
) -> Signature:
    """Returns the signature of the whole graph: a value for each column in, the label out as well.

    Args:
        bare: Of the network.
        encodings: Of the columns.
        labels: Names of the classes; none for regression.
    """
    inputs = tuple(encoding.input for encoding in encodings)
    if not labels:
        return Signature(inputs, bare.outputs)
    return Signature(inputs, (*bare.outputs, LABEL_SPEC))
