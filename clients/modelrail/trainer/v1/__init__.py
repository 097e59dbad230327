"""Messages and stubs of `modelrail.trainer.v1`, written by protos/generate.py."""
