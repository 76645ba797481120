"""Run the migrations on the given connection, else as LINQ_ETL_DATABASE__URL and …__SCHEMA say."""

import os

from alembic import context
from sqlalchemy import Connection

from etl.db.engine import open_engine, writing
from etl.db.tables import VERSION_TABLE, metadata


def run(connection: Connection) -> None:
    """Run in the connection's transaction; tables of other projects are ignored."""
    context.configure(
        connection=connection,
        target_metadata=metadata,
        version_table=VERSION_TABLE,
        include_name=lambda name, kind, _: kind != "table" or name in metadata.tables,
    )
    with context.begin_transaction():
        context.run_migrations()


given = context.config.attributes.get("connection")
if given is None:
    url, schema = (os.environ.get(f"LINQ_ETL_DATABASE__{key}") for key in ("URL", "SCHEMA"))
    with writing(open_engine(url or "", schema)) as opened:
        run(opened)
else:
    run(given)
