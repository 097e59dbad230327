"""From a trained network to files that are proven.

`ladder` tries one way of exporting after the other; `exporter` writes the file, `acceptance` and
`parity` compare it with PyTorch, and `second_look` compares it again in another process.
"""
