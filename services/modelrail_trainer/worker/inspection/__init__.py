"""A look into a table before anybody learns from it: figures, warnings, a first specification.

files ▸ scan ▸ one sketch a column ▸ what to do with each ▸ `inspection.json`
"""
