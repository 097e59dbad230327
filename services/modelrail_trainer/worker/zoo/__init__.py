"""The zoo: the architectures that a job can train, one file a family."""
