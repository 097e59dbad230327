"""Runs the migrations on the connection that the registry hands in."""

from __future__ import annotations

from alembic import context

from modelrail_registry.catalog.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
