"""When each number had its last turn, by what the run log says of it."""

import pytest
from sqlalchemy import Engine, insert

from etl.db.engine import reading, writing
from etl.db.run_log import LEFT_OUT_REASON, TOO_LONG_REASON, Record
from etl.db.tables import phone_numbers, sync_run_numbers, sync_runs
from etl.db.turns import Turn, last_turns
from tests.support.builders import NOON, A, B, C

READ: Record = {"status": "succeeded", "completeness": "consistent", "requests": 3}
SPENT: Record = {"status": "partial", "reason": "budget: the run has spent its 9 requests"}


def store(engine: Engine, *entries: Record) -> None:
    """A's entries in runs 1, 2, …; B is known and has none."""
    numbers = [{"phone_number": each, "first_seen_at": NOON} for each in (A, B)]
    run = {"command": "sync", "status": "succeeded", "started_at": NOON, "version": "1"}
    internal = {"host": "h", "owner": "o", "lease_expires_at": NOON}
    counts = {"numbers_total": 1, "numbers_failed": 0}
    with writing(engine) as connection:
        connection.execute(insert(phone_numbers), numbers)
        for run_id, entry in enumerate(entries, 1):
            connection.execute(insert(sync_runs), {"id": run_id, **run, **internal, **counts})
            row = {"run_id": run_id, "phone_number": A, **entry}
            connection.execute(insert(sync_run_numbers), row)


@pytest.mark.parametrize(
    ("entry", "had_its_turn"),
    [
        (READ, True),
        ({**SPENT, "completeness": "unproved", "requests": 9}, True),
        ({"status": "partial", "reason": f"{TOO_LONG_REASON} about 12", "requests": 1}, True),
        ({"status": "failed", "error_kind": "refused", "requests": 1}, True),
        ({"status": "interrupted", "requests": 2}, True),
        ({**SPENT, "requests": 9}, False),
        ({"status": "partial", "reason": LEFT_OUT_REASON}, False),
        ({"status": "failed", "error_kind": "busy"}, False),
        ({"status": "interrupted"}, False),
    ],
)
def test_what_is_a_turn(engine: Engine, entry: Record, had_its_turn: bool) -> None:
    """A reading to the end, to a failure, or of a list that no budget of that size can hold."""
    store(engine, {**READ, "total_count": 7}, entry)
    with reading(engine) as connection:
        found = last_turns(connection, [A, B, C])
    assert found == {A: Turn(2 if had_its_turn else 1, 7), B: Turn(0, None)}


def test_the_newest_count_is_the_length(engine: Engine) -> None:
    """Also that of a reading that the budget cut short."""
    cut = {**SPENT, "requests": 4, "total_count": 80}
    store(engine, {**READ, "total_count": 7}, cut, {"status": "partial", "reason": LEFT_OUT_REASON})
    with reading(engine) as connection:
        assert last_turns(connection, [A]) == {A: Turn(1, 80)}
