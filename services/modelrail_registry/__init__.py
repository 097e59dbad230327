"""The model registry: versions that cannot change, aliases that move, and the bytes behind them."""
