"""Messages and stubs of `modelrail.oip.v2`, written by protos/generate.py."""
