"""Steps that bring an older database of the trainer up to date, run by Alembic at every start."""
