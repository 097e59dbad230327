"""Threads: how many there are, where they run and how urgently, and what happens without them."""
