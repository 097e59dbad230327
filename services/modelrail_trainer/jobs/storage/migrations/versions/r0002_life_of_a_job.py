"""Priorities, limits of time, retries and clones."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Adds what older jobs have none of, and their defaults."""
    op.add_column("jobs", sa.Column("priority", sa.Integer, nullable=False, server_default="0"))
    op.add_column("jobs", sa.Column("max_run_duration", sa.BigInteger))
    op.add_column("jobs", sa.Column("expire_time", sa.BigInteger))
    op.add_column("jobs", sa.Column("parent", sa.Text))
    for count in ("max_retries", "retries"):
        op.add_column("jobs", sa.Column(count, sa.Integer, nullable=False, server_default="0"))
    for seconds in ("run_seconds", "earlier_run_seconds"):
        op.add_column("jobs", sa.Column(seconds, sa.Float, nullable=False, server_default="0"))
    op.create_index("jobs_by_priority", "jobs", ["state", sa.text("priority DESC"), "number"])
