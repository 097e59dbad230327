"""Where models come from: the registry, a folder in Triton's layout, or one file."""
