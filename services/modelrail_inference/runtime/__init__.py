"""ONNX Runtime and everything that knows it."""

import os

# Official builds of ONNX Runtime from 1.32 on report their use to Microsoft, on a thread that the
# import starts. Callers' models are nobody's business; an operator who wants it can set 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
