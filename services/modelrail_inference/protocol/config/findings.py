"""What ModelConfig says in `parameters` beyond a configuration: what the server found out.

A configuration that was made from such a reply repeats it, and asks for nothing by that.
"""

from __future__ import annotations

from typing import Final

from modelrail.oip.v2 import model_config_pb2 as pb
from modelrail_inference.protocol.config.field_error import field_error
from modelrail_inference.protocol.config.gpu import read_provider

EXECUTION_PROVIDER: Final = "execution_provider"
BATCHING_OFF: Final = "batching_off"
METADATA_PREFIX: Final = "modelrail."
"""Of the keys that an exporter wrote into the model's file."""


def read_findings(config: pb.ModelConfig) -> tuple[str, ...]:
    """Returns the keys of `parameters` that repeat what a server found out.

    Raises:
        LoadError: The provider is another than the one that the configuration asks for.
    """
    provider = read_provider(config)
    if EXECUTION_PROVIDER in config.parameters:
        repeated = config.parameters[EXECUTION_PROVIDER].string_value
        wanted = provider.value if provider is not None else ""
        if repeated != wanted:
            raise field_error(
                f"parameters['{EXECUTION_PROVIDER}']",
                f"expected '{wanted}', as instance_group[0].kind and optimization decide, got "
                f"'{repeated[:20]}'",
            )
    return tuple(
        key
        for key in config.parameters
        if key in (EXECUTION_PROVIDER, BATCHING_OFF) or key.startswith(METADATA_PREFIX)
    )
