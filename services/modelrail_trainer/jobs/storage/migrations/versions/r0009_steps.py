"""How many steps training has in all."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Of jobs that were there before nobody knows it until they report again."""
    op.add_column("jobs", sa.Column("progress_steps", sa.BigInteger))
