"""A job in a terminal while it goes on: events ▸ history ▸ frame ▸ terminal."""
