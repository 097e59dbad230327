"""From an untrusted request to what a session takes."""
