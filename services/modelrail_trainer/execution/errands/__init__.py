"""Processes that answer one question, confined as jobs are, and leave nothing behind."""
