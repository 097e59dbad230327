"""ONNX Runtime and everything that knows it."""
