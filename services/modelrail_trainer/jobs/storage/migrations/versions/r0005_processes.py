"""How many processes train together."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Adds the column; jobs of before it have one process."""
    op.add_column("jobs", sa.Column("processes", sa.Integer, nullable=False, server_default="1"))
