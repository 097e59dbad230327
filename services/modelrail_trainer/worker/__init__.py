"""The training process: one job from a specification to a proven ONNX file.

Only this package imports torch, onnx, onnxruntime and scikit-learn.
"""
