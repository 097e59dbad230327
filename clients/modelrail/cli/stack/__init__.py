"""The three services as processes of this machine: started, watched, and stopped together."""
