"""What carries jobs out: processes, their supervisor, and the publisher of their results."""
