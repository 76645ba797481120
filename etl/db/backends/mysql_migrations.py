"""Alembic on MariaDB and MySQL, where each CREATE, ALTER and DROP commits.

An upgrade that was killed is run again from the beginning of its revision. What that finds done
already is passed over. In a revision, changes of rows come last: with the revision's own row, they
are committed together or not at all.
"""

from typing import Any, Final

from alembic.ddl.mysql import MySQLImpl
from pymysql.constants import ER
from sqlalchemy import Table, inspect
from sqlalchemy.exc import DBAPIError

from etl.errors import SchemaError

_UNKNOWN_VIEW: Final = 4092  # of MariaDB; MySQL has BAD_TABLE_ERROR for it
_DONE: Final = {
    ER.DUP_FIELDNAME,
    ER.DUP_KEYNAME,
    ER.TABLE_EXISTS_ERROR,
    ER.BAD_TABLE_ERROR,
    ER.CANT_DROP_FIELD_OR_KEY,
    _UNKNOWN_VIEW,
}


class RepeatableImpl(MySQLImpl):
    """Takes the place of Alembic's own class for the dialect."""

    __dialect__ = "mysql"

    def create_table(self, table: Table, **options: Any) -> None:
        """Create it so that each text is kept, and compared, as it is."""
        mariadb = getattr(self.dialect, "is_mariadb", True)
        table.dialect_options["mysql"].update(
            engine="InnoDB",
            row_format="DYNAMIC",  # Others have shorter keys, and no room for many texts.
            default_charset="utf8mb4",
            collate="utf8mb4_nopad_bin" if mariadb else "utf8mb4_0900_bin",
        )
        super().create_table(table, **options)
        assert self.connection is not None  # noqa: S101  # The scripts are not printed.
        if inspect(self.connection).get_table_comment(table.name)["text"] != table.comment:
            raise SchemaError(f"the database has a table {table.name} of another program")

    def _exec(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super()._exec(*args, **kwargs)
        except DBAPIError as error:
            if error.orig is not None and error.orig.args[0] in _DONE:
                return None
            raise
