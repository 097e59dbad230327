"""What is counted while a load runs: latencies, failures, the window, the client itself."""
