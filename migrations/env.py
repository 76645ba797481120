"""Runs the migrations on the connection it is handed, else on LINQ_ETL_DATABASE__URL."""

import os

from alembic import context
from sqlalchemy import Connection, create_engine

from etl.db.tables import VERSION_TABLE, metadata


def run(connection: Connection) -> None:
    """Run in the connection's transaction, touching no table that is not ours."""
    context.configure(
        connection=connection,
        target_metadata=metadata,
        version_table=VERSION_TABLE,
        render_as_batch=True,
        include_name=lambda name, kind, _: kind != "table" or name in metadata.tables,
    )
    with context.begin_transaction():
        context.run_migrations()


given = context.config.attributes.get("connection")
if given is None:
    with create_engine(os.environ["LINQ_ETL_DATABASE__URL"]).begin() as opened:
        run(opened)
else:
    run(given)
