"""Networks of the zoo's architectures, with random weights."""
