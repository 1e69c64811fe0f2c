"""How many instances agents are to have, and endpoints that are given no more calls.

Programs of schema 1 work with it: they neither scale nor drain, and what they do not name gets its default.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("leases", sa.Column("draining", sa.Integer(), nullable=False, server_default="0"))
    op.create_table(
        "scales",
        sa.Column("agent_id", sa.Text(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("desired", sa.BigInteger(), nullable=True),
        sa.Column("changed_ms", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("paused_ms", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("paused_by", sa.Text(), nullable=False, server_default=""),
        sa.Column("paused_reason", sa.Text(), nullable=False, server_default=""),
        sa.Column("report", sa.Text(), nullable=False, server_default=""),
        sa.Column("reported_ms", sa.BigInteger(), nullable=False, server_default="0"),
        sa.PrimaryKeyConstraint("agent_id"),
    )
