"""Sends requests and measures: arrivals, calls, histograms, client processes."""
