"""What Alembic runs: the steps, on the connection and inside the transaction of `migration.bring_up`."""

from __future__ import annotations

from alembic import context

from outrider_control.state.migration import VERSION_TABLE
from outrider_control.state.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    transactional_ddl=False,  # the transaction is the caller's
)
context.run_migrations()
