"""Reads and writes what a `config.pbtxt` says about the numbers that requests may hold."""

from __future__ import annotations

from modelrail.oip.v2 import model_config_pb2 as pb
from modelrail_inference.protocol.config.field_error import field_error

REJECT_NONFINITE = "reject_nonfinite"
"""A parameter of our own: Triton passes NaN and infinities on."""
_VALUES = {"true": True, "false": False, "1": True, "0": False}


def read_rejects_nonfinite(config: pb.ModelConfig) -> bool:
    """Returns whether requests with NaN or infinities are refused.

    Raises:
        LoadError: The value is no truth value.
    """
    if REJECT_NONFINITE not in config.parameters:
        return False
    text = config.parameters[REJECT_NONFINITE].string_value
    if text not in _VALUES:
        raise field_error(
            f"parameters['{REJECT_NONFINITE}']", f"expected 'true' or 'false', got {text[:20]!r}"
        )
    return _VALUES[text]


def write_rejects_nonfinite(rejects: bool, config: pb.ModelConfig) -> None:
    """Writes it into `config` where it differs from the default."""
    if rejects:
        config.parameters[REJECT_NONFINITE].string_value = "true"
