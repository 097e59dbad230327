"""Tables of the trainer's database. `migrations/` makes them; a test compares the two."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
)

metadata = MetaData()

# Times are microseconds since 1970 in UTC: SQLite has no time type, and these sort. Durations are
# microseconds too.
jobs = Table(
    "jobs",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("id", Text, nullable=False, unique=True),
    Column("uid", Text, nullable=False, unique=True),
    Column("specification", LargeBinary, nullable=False),
    Column("model", Text, nullable=False),
    Column("alias", Text, nullable=False),
    Column("description", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("error_reason", Text),
    Column("error_message", Text),
    Column("progress_epoch", Integer),
    Column("progress_epochs", Integer),
    Column("progress_step", BigInteger),
    Column("progress_steps", BigInteger),
    Column("progress_rows_per_second", Float),
    Column("progress_eta_seconds", Float),
    Column("metrics", Text, nullable=False),
    Column("model_version", Text, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("losses", Integer, nullable=False),
    Column("create_time", BigInteger, nullable=False),
    Column("start_time", BigInteger),
    Column("end_time", BigInteger),
    Column("process", Text, nullable=False),
    Column("journal_offset", BigInteger, nullable=False),
    # What the log lines and figures take that the journals of all attempts told.
    Column("journal_bytes", BigInteger, nullable=False, server_default="0"),
    # Bytes of the attempt's output that are stored, and what the lines of all attempts take.
    Column("output_offset", BigInteger, nullable=False, server_default="0"),
    Column("output_bytes", BigInteger, nullable=False, server_default="0"),
    Column("committing", Boolean, nullable=False),
    Column("last_sequence", BigInteger, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("isolation", Text, nullable=False, server_default="[]"),
    Column("max_run_duration", BigInteger),
    Column("expire_time", BigInteger),
    Column("max_retries", Integer, nullable=False),
    Column("processes", Integer, nullable=False, server_default="1"),
    # Id of the job that was cloned.
    Column("parent", Text),
    Column("retries", Integer, nullable=False),
    # JSON, the reason of the failure to how often.
    Column("retries_by_reason", Text, nullable=False, server_default="{}"),
    Column("run_seconds", Float, nullable=False),
    Column("earlier_run_seconds", Float, nullable=False),
    # Who holds the job, how often it was taken, and when the others may take it by the clock of
    # the database.
    Column("lease_owner", Text),
    Column("lease_epoch", BigInteger, nullable=False, server_default="0"),
    Column("lease_expires", BigInteger),
    # JSON of the messages of the same names; empty before there are any.
    Column("evaluation", Text, nullable=False, server_default=""),
    Column("data_summary", Text, nullable=False, server_default=""),
    # Set: nobody sees the job any more, and what is left of it is removed bit by bit.
    Column("delete_time", BigInteger),
    Index("jobs_by_state", "state", "number"),
    Index("jobs_by_end", "delete_time", "end_time", "number"),
)
# The order of the queue.
Index("jobs_by_priority", jobs.c.state, jobs.c.priority.desc(), jobs.c.number)

events = Table(
    "events",
    metadata,
    Column("job_number", Integer, ForeignKey("jobs.number"), primary_key=True),
    Column("sequence", BigInteger, primary_key=True),
    Column("create_time", BigInteger, nullable=False),
    Column("kind", Text, nullable=False),
    Column("payload", Text, nullable=False),
    sqlite_with_rowid=False,
)

# One row a `request_id` that was accepted.
requests = Table(
    "requests",
    metadata,
    Column("request_id", Text, primary_key=True),
    Column("body_sha256", Text, nullable=False),
    Column("job_number", Integer, ForeignKey("jobs.number"), nullable=False),
    Column("create_time", BigInteger, nullable=False),
)
