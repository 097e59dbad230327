"""Which model files are let in: the limited process that examines them, and its gate."""
