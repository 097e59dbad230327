"""How much a job told in its journals, which bounds what is kept of it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """Adds the column; what older jobs told before counts nothing."""
    op.add_column(
        "jobs", sa.Column("journal_bytes", sa.BigInteger, nullable=False, server_default="0")
    )
