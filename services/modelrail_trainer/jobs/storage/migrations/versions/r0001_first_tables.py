"""Jobs, their events and the requests that made them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Makes the first tables."""
    op.create_table(
        "jobs",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("id", sa.Text, nullable=False, unique=True),
        sa.Column("uid", sa.Text, nullable=False, unique=True),
        sa.Column("specification", sa.LargeBinary, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("alias", sa.Text, nullable=False),
        sa.Column("description", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("error_reason", sa.Text),
        sa.Column("error_message", sa.Text),
        sa.Column("progress_epoch", sa.Integer),
        sa.Column("progress_epochs", sa.Integer),
        sa.Column("progress_step", sa.BigInteger),
        sa.Column("progress_rows_per_second", sa.Float),
        sa.Column("metrics", sa.Text, nullable=False),
        sa.Column("model_version", sa.Text, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("losses", sa.Integer, nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sa.Column("start_time", sa.BigInteger),
        sa.Column("end_time", sa.BigInteger),
        sa.Column("process_pid", sa.Integer),
        sa.Column("process_start_ticks", sa.BigInteger),
        sa.Column("process_boot_id", sa.Text),
        sa.Column("journal_offset", sa.BigInteger, nullable=False),
        sa.Column("committing", sa.Boolean, nullable=False),
        sa.Column("last_sequence", sa.BigInteger, nullable=False),
    )
    op.create_index("jobs_by_state", "jobs", ["state", "number"])
    op.create_table(
        "events",
        sa.Column("job_number", sa.Integer, sa.ForeignKey("jobs.number"), primary_key=True),
        sa.Column("sequence", sa.BigInteger, primary_key=True),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("payload", sa.Text, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "requests",
        sa.Column("request_id", sa.Text, primary_key=True),
        sa.Column("body_sha256", sa.Text, nullable=False),
        sa.Column("job_number", sa.Integer, sa.ForeignKey("jobs.number"), nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
    )
