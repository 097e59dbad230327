"""How the finished model does, what its process read, and when training will be over."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Adds the columns; of older jobs nothing is known."""
    for name in ("evaluation", "data_summary"):
        op.add_column("jobs", sa.Column(name, sa.Text, nullable=False, server_default=""))
    op.add_column("jobs", sa.Column("progress_eta_seconds", sa.Float))
