"""Learning: losses, optimisers, and the loop that trains a network and measures it."""
