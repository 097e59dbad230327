"""Alembic's entry: runs the steps on the connection that `database.py` opened."""

from __future__ import annotations

from alembic import context

from modelrail_trainer.jobs.storage.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
# The connection is in a transaction already: all steps are committed together or not at all.
context.run_migrations()
