"""The first shape of the database. Later changes are new steps; this one never changes.

The tables are spelled out here and not taken from `schema`, which moves on.
"""

from __future__ import annotations

import uuid

import sqlalchemy as sa
from alembic import op

revision = "r0001"
down_revision = None
branch_labels = None
depends_on = None

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Makes every table."""
    registry = op.create_table(
        "registry",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("uid", sa.String(36), nullable=False),
        sa.Column("last_sequence", sa.BigInteger, nullable=False),
    )
    op.bulk_insert(registry, [{"id": 1, "uid": str(uuid.uuid4()), "last_sequence": 0}])
    op.create_table(
        "models",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("model_id", sa.String(64), nullable=False, unique=True),
        sa.Column("uid", sa.String(36), nullable=False, unique=True),
        sa.Column("description", sa.Text, nullable=False),
        sa.Column("labels", sa.Text, nullable=False),
        sa.Column("latest_version_number", sa.BigInteger, nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sa.Column("update_time", sa.BigInteger, nullable=False),
        sa.Column("etag", sa.String(32), nullable=False),
    )
    op.create_table(
        "model_versions",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("model", _ID, sa.ForeignKey("models.id"), nullable=False),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.Column("uid", sa.String(36), nullable=False, unique=True),
        sa.Column("content", sa.Text, nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("model", "number"),
    )
    op.create_table(
        "model_version_files",
        sa.Column("version", _ID, sa.ForeignKey("model_versions.id"), primary_key=True),
        sa.Column("position", sa.Integer, primary_key=True),
        sa.Column("path", sa.String(255), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False, index=True),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("media_type", sa.String(127), nullable=False),
        sa.UniqueConstraint("version", "path"),
    )
    op.create_table(
        "model_aliases",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("model", _ID, sa.ForeignKey("models.id"), nullable=False),
        sa.Column("alias_id", sa.String(64), nullable=False),
        sa.Column("version", _ID, sa.ForeignKey("model_versions.id"), nullable=False, index=True),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sa.Column("update_time", sa.BigInteger, nullable=False),
        sa.Column("etag", sa.String(32), nullable=False),
        sa.UniqueConstraint("model", "alias_id"),
    )
    op.create_table(
        "events",
        sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("model_id", sa.String(64), nullable=False),
        sa.Column("resource", sa.String(255), nullable=False),
        sa.Column("model_version", sa.String(255), nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sa.Index("ix_events_model_id_sequence", "model_id", "sequence"),
    )
    op.create_table(
        "requests",
        sa.Column("request_id", sa.String(36), primary_key=True),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("result", sa.Text, nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False, index=True),
    )
    op.create_table(
        "admissions",
        sa.Column("sha256", sa.String(64), primary_key=True),
        sa.Column("ruleset", sa.String(64), primary_key=True),
        sa.Column("admitted", sa.Boolean, nullable=False),
        sa.Column("document", sa.Text, nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
    )
