"""What a model is: its signature, its configuration, what is to be loaded and what is loaded."""
