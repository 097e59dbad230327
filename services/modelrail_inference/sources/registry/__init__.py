"""Models from the registry: which versions are wanted, their files, and what changes."""
