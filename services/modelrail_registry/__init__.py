"""The model registry: versions that cannot change, aliases that move, and the bytes behind them."""

import modelrail_server  # noqa: F401 - what it sets must be set before gRPC is imported
