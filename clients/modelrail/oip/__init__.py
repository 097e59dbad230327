"""The Open Inference Protocol: generated messages and stubs, and their public descriptors."""
