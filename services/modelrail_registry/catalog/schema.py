"""Tables of the registry's database. Times are microseconds since 1970, in UTC."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ix": "ix_%(table_name)s_%(column_0_name)s",
    }
)

# SQLite makes a row id only out of the type INTEGER.
_Id = BigInteger().with_variant(Integer(), "sqlite")

# One row. Every event takes its number from here, so that numbers follow the order of commits on
# any database; a sequence object hands numbers out in the order of the asking, and a watcher
# could then step over a late commit.
registry = Table(
    "registry",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("uid", String(36), nullable=False),
    Column("last_sequence", BigInteger, nullable=False),
)

models = Table(
    "models",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("model_id", String(64), nullable=False, unique=True),
    Column("uid", String(36), nullable=False, unique=True),
    Column("description", Text, nullable=False),
    Column("labels", Text, nullable=False),
    Column("latest_version_number", BigInteger, nullable=False),
    Column("create_time", BigInteger, nullable=False),
    Column("update_time", BigInteger, nullable=False),
    Column("etag", String(32), nullable=False),
)

versions = Table(
    "model_versions",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("model", _Id, ForeignKey("models.id"), nullable=False),
    Column("number", BigInteger, nullable=False),
    Column("uid", String(36), nullable=False, unique=True),
    Column("content", Text, nullable=False),
    Column("create_time", BigInteger, nullable=False),
    UniqueConstraint("model", "number"),
)

files = Table(
    "model_version_files",
    metadata,
    Column("version", _Id, ForeignKey("model_versions.id"), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("path", String(255), nullable=False),
    Column("sha256", String(64), nullable=False, index=True),
    Column("size_bytes", BigInteger, nullable=False),
    Column("media_type", String(127), nullable=False),
    UniqueConstraint("version", "path"),
)

aliases = Table(
    "model_aliases",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("model", _Id, ForeignKey("models.id"), nullable=False),
    Column("alias_id", String(64), nullable=False),
    Column("version", _Id, ForeignKey("model_versions.id"), nullable=False, index=True),
    Column("create_time", BigInteger, nullable=False),
    Column("update_time", BigInteger, nullable=False),
    Column("etag", String(32), nullable=False),
    UniqueConstraint("model", "alias_id"),
)

events = Table(
    "events",
    metadata,
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("kind", String(32), nullable=False),
    Column("model_id", String(64), nullable=False),
    Column("resource", String(255), nullable=False),
    Column("model_version", String(255), nullable=False),
    Column("create_time", BigInteger, nullable=False),
    Index("ix_events_model_id_sequence", "model_id", "sequence"),
)

requests = Table(
    "requests",
    metadata,
    Column("request_id", String(36), primary_key=True),
    Column("digest", String(64), nullable=False),
    Column("result", Text, nullable=False),
    Column("create_time", BigInteger, nullable=False, index=True),
)

admissions = Table(
    "admissions",
    metadata,
    Column("sha256", String(64), primary_key=True),
    Column("ruleset", String(64), primary_key=True),
    Column("admitted", Boolean, nullable=False),
    Column("document", Text, nullable=False),
    Column("create_time", BigInteger, nullable=False),
)


def to_microseconds(time: datetime) -> int:
    """Returns the stored form of a time."""
    seconds = int(time.replace(microsecond=0).timestamp())
    return seconds * 1_000_000 + time.microsecond


def from_microseconds(value: int) -> datetime:
    """Returns the time of a stored form, in UTC."""
    seconds, microseconds = divmod(value, 1_000_000)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=microseconds)
