"""Loads of files that nobody vouched for, in a process that may crash."""
