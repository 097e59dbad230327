"""What a model runs before it serves: to be warm, and to show how it is best served."""
