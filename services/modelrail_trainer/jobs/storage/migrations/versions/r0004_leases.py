"""Who holds a job."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Adds the columns; the trainer takes the jobs of before it when it starts."""
    op.add_column("jobs", sa.Column("lease_owner", sa.Text))
    op.add_column(
        "jobs", sa.Column("lease_epoch", sa.BigInteger, nullable=False, server_default="0")
    )
    op.add_column("jobs", sa.Column("lease_expires", sa.BigInteger))
