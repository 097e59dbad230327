"""Requests made from a model's metadata, with random or recorded values."""
