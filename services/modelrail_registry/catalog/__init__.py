"""Models, versions, aliases and events in the database; every change is one transaction."""
