"""What a server tells about itself: logs, metrics, and the port that shows them."""
