"""What an executor knows its execution by, in one column that only it reads."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Writes the processes of running jobs as handles, by which the new trainer adopts them."""
    op.add_column("jobs", sa.Column("process", sa.Text, nullable=False, server_default=""))
    op.execute(
        "UPDATE jobs SET process = "
        "process_pid || ':' || process_start_ticks || ':' || process_boot_id "
        "WHERE process_pid IS NOT NULL"
    )
    for name in ("process_pid", "process_start_ticks", "process_boot_id"):
        op.drop_column("jobs", name)
