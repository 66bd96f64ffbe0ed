"""What the driver of a study does now, for those who look: running, paused, draining."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("tuner_studies", sa.Column("driving", sa.Text(), nullable=True))
