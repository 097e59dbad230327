"""How far what a job prints is stored, for what it ran again, and which jobs were deleted."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Follows the output of jobs that run already from its beginning; no job is deleted."""
    for name in ("output_offset", "output_bytes"):
        op.add_column("jobs", sa.Column(name, sa.BigInteger, nullable=False, server_default="0"))
    counts = sa.Column("retries_by_reason", sa.Text, nullable=False, server_default="{}")
    op.add_column("jobs", counts)
    op.add_column("jobs", sa.Column("delete_time", sa.BigInteger))
    op.create_index("jobs_by_end", "jobs", ["delete_time", "end_time", "number"])
