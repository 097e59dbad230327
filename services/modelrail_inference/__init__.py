"""The inference service: the Open Inference Protocol over ONNX Runtime."""
