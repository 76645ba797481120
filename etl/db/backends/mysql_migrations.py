"""Alembic on MariaDB and MySQL, where each CREATE, ALTER and DROP commits.

An upgrade that was killed is run again from the beginning of its revision. What that finds done
already is passed over. In a revision, changes of rows come last: with the revision's own row, they
are committed together or not at all.
"""

from typing import Any, Final

from alembic.ddl.mysql import MySQLImpl
from pymysql.constants import ER
from sqlalchemy import Table
from sqlalchemy.exc import DBAPIError

_UNKNOWN_VIEW: Final = 4092  # of MariaDB; MySQL has BAD_TABLE_ERROR for it
_DONE: Final = {
    ER.TABLE_EXISTS_ERROR,
    ER.DUP_FIELDNAME,
    ER.DUP_KEYNAME,
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
            default_charset="utf8mb4",
            collate="utf8mb4_nopad_bin" if mariadb else "utf8mb4_0900_bin",
        )
        super().create_table(table, **options)

    def _exec(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super()._exec(*args, **kwargs)
        except DBAPIError as error:
            if error.orig is not None and error.orig.args[0] in _DONE:
                return None
            raise
