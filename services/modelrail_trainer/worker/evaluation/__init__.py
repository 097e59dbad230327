"""Measuring: figures of a part of the data, and what the report shows of the test rows.

predict ▸ outputs of some rows ▸ every measure ▸ numbers. No measure keeps rows, so that the memory
does not grow with the data.
"""
