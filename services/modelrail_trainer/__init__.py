"""The trainer: jobs that turn a data set into a published model version."""

import modelrail_server  # noqa: F401 - what it sets must be set before gRPC is imported
