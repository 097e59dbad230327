"""The layers around a job's process."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Adds the column; of older jobs nothing is known."""
    op.add_column(
        "jobs", sa.Column("isolation", sa.Text, nullable=False, server_default=sa.text("'[]'"))
    )
