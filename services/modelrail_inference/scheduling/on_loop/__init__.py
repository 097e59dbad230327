"""Runs of quick models on the event loop itself, without a thread."""
