"""From checked requests to runs of sessions: queues, batches, fairness and what overload does."""
