"""What every modelrail server shares: start, drain, settings, errors, access, health, metrics."""
