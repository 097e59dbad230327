"""What every modelrail server shares: start and drain, configuration, errors, access, health and metrics."""
