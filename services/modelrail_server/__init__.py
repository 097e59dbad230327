"""What every modelrail server shares: start, drain, settings, errors, access, health, metrics."""

import os

# Services start other programs, never copies of themselves. For a copy's sake gRPC would stop its
# threads around each start and begin them anew, and abort where the system allows no more of them.
# It reads this when it is imported, so the packages of the services import this one first.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
