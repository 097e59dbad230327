"""What a server tells of itself and its model before and after a load test."""
