"""Jobs in a database: one transaction a change, with the event that tells of it."""
