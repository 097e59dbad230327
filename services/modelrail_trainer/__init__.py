"""The trainer: jobs that turn a data set into a published model version."""
