"""Galera: what one node locks, the other nodes do not see.

An upgrade must be alone in the cluster. Its statements take effect on all nodes in one order, and
two nodes that alter tables and create views on them at once can lock each other up for ever. A
table is its lock: of two nodes that create it at once, one is refused. Its comment names the node.
"""

import time
from typing import Any, Final

from pymysql.constants import ER
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from etl.errors import DatabaseUnavailableError

_LOCK: Final = "linq_etl_upgrade"
_PAUSE_SECONDS: Final = 0.5
_NODE: Final = text("""
    SHOW VARIABLES WHERE Variable_name IN ('wsrep_on', 'wsrep_node_name', 'wsrep_node_address')
""")
_HOLDER: Final = text("""
    SELECT table_comment FROM information_schema.tables
    WHERE table_schema = database() AND table_name = :name
""")


def lock_upgrade(connection: Connection, seconds: float) -> bool:
    """Wait so long for upgrades on other nodes; False if the server is not part of a cluster.

    This node's own lock must be held: then a lock that names this node is left from an upgrade that
    was killed.
    """
    variables: dict[str, str] = {row[0]: row[1] for row in connection.execute(_NODE)}
    if variables.get("wsrep_on") != "ON":
        return False
    node = f"{variables['wsrep_node_name']} {variables['wsrep_node_address']}".strip()
    end = time.monotonic() + seconds
    while (holder := connection.execute(_HOLDER, {"name": _LOCK}).scalar()) != node:
        if holder is None and _create(connection, node):
            break
        if time.monotonic() > end:
            raise DatabaseUnavailableError(
                f"another program has upgraded this database for more than {seconds:g} s, through "
                f"the node {holder}. If it was killed, run: DROP TABLE {_LOCK};"
            )
        time.sleep(_PAUSE_SECONDS)
    return True


def _create(connection: Connection, node: str) -> bool:
    """Whether no other node was faster."""
    try:
        connection.execute(text(f"CREATE TABLE {_LOCK} (id INT) COMMENT :node"), {"node": node})
    except DBAPIError as error:
        if error.orig and error.orig.args[0] == ER.TABLE_EXISTS_ERROR:
            return False
        raise
    return True


def unlock_upgrade(cursor: Any) -> None:
    """Let others upgrade."""
    cursor.execute(f"DROP TABLE IF EXISTS {_LOCK}")
