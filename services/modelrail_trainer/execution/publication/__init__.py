"""From the result of a job to a version in the registry."""
