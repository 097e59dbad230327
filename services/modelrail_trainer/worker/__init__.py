"""The training process: one job from a specification to a proven ONNX file.

This package, and what it calls of the rooms beside it, import torch, onnx, onnxruntime and
scikit-learn.
"""
