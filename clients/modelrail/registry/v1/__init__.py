"""Messages and stubs of `modelrail.registry.v1`, written by protos/generate.py."""
