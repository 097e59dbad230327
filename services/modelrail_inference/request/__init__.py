"""A request and its reply: what they hold, how they are checked, and how tensors become bytes."""
