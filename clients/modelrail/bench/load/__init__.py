"""Sends requests: arrivals, calls and streams, client processes."""
