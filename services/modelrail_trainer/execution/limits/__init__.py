"""What a job may take, by the service's own clocks."""
