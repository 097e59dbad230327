"""Requests that wait for a thread, and why some do not."""
