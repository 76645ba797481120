"""The main job over a real socket into real databases: they hold what the API holds."""

import json
from pathlib import Path
from typing import Any

import pytest

from etl.db.tables import COUNTS, metadata
from etl.sandbox import Faults, Motion, Sandbox, World, build_world
from tests.support.builders import A, B
from tests.support.command import (
    DATA_TABLES,
    call,
    environment,
    held,
    instant,
    linq_etl,
    select,
    snapshot,
    stored,
)

OF_RUNS = {"sync_runs", "number_leases", "run_fences"}
FAULTS = Faults(server_error=0.06, html=0.06, drop=0.06, cut=0.06, rate_limit=60)


def test_a_faulty_api_is_stored_exactly_and_once(database_url: str) -> None:
    """Every field of every chat, handle and membership is stored; a second sync writes no row."""
    world = build_world(chats_per_number=90)
    with Sandbox(world, faults=FAULTS) as sandbox:
        env = environment(sandbox, database_url, LINQ_ETL_API__PER_PAGE="10")
        first = linq_etl("sync", "--json", env=env)
        assert (first.code, first.data["status"]) == (0, "succeeded")
        assert first.data["retries"] > 0
        assert stored(database_url) == held(world)
        before = snapshot(database_url)
        sandbox.faults = Faults()
        second = linq_etl("sync", "--json", env=env)
    assert second.code == 0
    assert snapshot(database_url) == before
    assert {n["completeness"] for n in second.data["numbers"]} <= {"consistent", "proved"}
    written = ("chats_inserted", "chats_updated", "handles_inserted", "handles_updated")
    assert [second.data[count] for count in written] == [0, 0, 0, 0]


@pytest.mark.slow
def test_a_throttling_api_is_waited_for(tmp_path: Path) -> None:
    """Requests are sent again when Retry-After says; the next run knows the rate allowed."""
    url, world = f"sqlite:///{tmp_path}/linq.db", build_world(numbers=[A], chats_per_number=20)
    with Sandbox(world, faults=Faults(rate_limit=1, retry_after="seconds")) as sandbox:
        env = environment(sandbox, url, A, LINQ_ETL_API__PER_PAGE="10")
        done = linq_etl("sync", "--json", env=env)
    assert (done.code, done.data["throttled"] > 0) == (0, True)
    assert len(select(url, "SELECT * FROM api_pace")) == 1
    assert stored(url) == held(world, [A])


def test_a_wrong_token_costs_one_request_and_never_leaks(database_url: str) -> None:
    """Exit code 4 and the fix; the token is in no output and in no byte of the database."""
    secret = "wrong-token-3f9a77"
    with Sandbox(build_world(chats_per_number=20)) as sandbox:
        env = environment(sandbox, database_url, LINQ_INTEGRATION_TOKEN=secret)
        refused = linq_etl("--log-json", "sync", "--json", env=env)
        assert [request.status for request in sandbox.requests] == [401]
    assert refused.code == 4
    assert "Put a valid integration token in $LINQ_INTEGRATION_TOKEN" in refused.stderr
    assert secret not in refused.stdout + refused.stderr
    errors = "SELECT status, error_kind, requests FROM sync_runs"
    assert select(database_url, errors) == [("failed", "token", 1)]
    for name in (*DATA_TABLES, "sync_runs", "sync_run_numbers", "rejected_records"):
        assert secret not in repr(select(database_url, f"SELECT * FROM {name}"))
    for file in Path.cwd().glob("linq.db*"):
        assert secret.encode() not in file.read_bytes()


def test_unusual_values_are_stored(database_url: str) -> None:
    """Missing, null, unknown, huge and unprintable values are not refused."""
    world = World((A,))
    world.populate([(A,)] * 4)
    first, second, third, fourth = sorted(world.listing(A))
    world.edit(
        first,
        display_name="nul\x00 and \ud800 lone",
        service="Signal",
        group=None,
        message_count=2**63 - 1,
        pinned={"by": ["me"]},
    )
    world.edit(second, display_name="🧑‍🚀" * 5_000, chat_handles=[])
    handle = {"id": 2**63 - 1, "phone_number": "Some.One+x@example.com", "service": None}
    moments = {
        "2025-05-21T15:30:00.123456789+05:45": "2025-05-21T09:45:00.123456+00:00",
        "2025-05-21 15:30:00": "2025-05-21T15:30:00+00:00",
        "0001-01-02T00:00:00Z": "0001-01-02T00:00:00+00:00",
    }
    joined = [handle | {"id": n, "joined_at": text} for n, text in enumerate(moments)]
    world.edit(third, chat_handles=[*joined, handle | {"nickname": "Sam"}])
    world.edit(fourth, **dict.fromkeys(("display_name", "service", "message_count")))
    with Sandbox(world) as sandbox:
        done = linq_etl("sync", "--json", env=environment(sandbox, database_url, A))
    assert (done.code, done.data["rejected"], done.data["texts_cleaned"]) == (0, 0, 1)
    chats = {row[0]: row[1:] for row in stored(database_url)["chats"]}
    assert chats[first] == ("nul\ufffd and \ufffd lone", "Signal", None, 2**63 - 1)
    assert chats[second][0] == "🧑‍🚀" * 5_000
    assert chats[fourth][:2] == (None, None)
    assert {h[1:] for h in stored(database_url)["handles"] if h[0] == third} == {
        *(
            (n, "Some.One+x@example.com", None, instant(expected))
            for n, expected in enumerate(moments.values())
        ),
        (2**63 - 1, "Some.One+x@example.com", None, None),
    }
    extras = select(database_url, "SELECT extra FROM chats WHERE extra IS NOT NULL")
    extras += select(database_url, "SELECT extra FROM chat_handles WHERE extra IS NOT NULL")
    assert [_json(extra) for (extra,) in extras] == [
        {"pinned": {"by": ["me"]}},
        {"nickname": "Sam"},
    ]


def test_a_record_that_cannot_be_stored_is_rejected(database_url: str) -> None:
    """It is kept in rejected_records; the rest of its page is stored; exit code 3."""
    world = build_world(numbers=[A], chats_per_number=30)
    expected = held(world, [A])
    broken = world.listing(A)[7]
    world.edit(broken, message_count="plenty")
    with Sandbox(world) as sandbox:
        done = linq_etl("sync", "--json", env=environment(sandbox, database_url, A))
    assert done.code == 3
    assert (done.data["status"], done.data["rejected"]) == ("partial", 1)
    left_out = {"chats": 0, "handles": 0, "memberships": 1}
    assert stored(database_url) == {
        table: [row for row in rows if row[left_out[table]] != broken]
        for table, rows in expected.items()
    }
    ((number, page, reason, payload),) = select(
        database_url, "SELECT phone_number, page, reason, payload FROM rejected_records"
    )
    assert (number, page) == (A, 1)
    assert "message_count" in reason
    assert _json(payload) == world.chat(broken)


def test_a_failing_number_stops_no_other(tmp_path: Path) -> None:
    """An unknown number is reported and logged, the others are synced; exit code 3."""
    url = f"sqlite:///{tmp_path}/linq.db"
    world, unknown = build_world(chats_per_number=20), "+12025550199"
    with Sandbox(world) as sandbox:
        done = linq_etl("sync", "--json", env=environment(sandbox, url, A, unknown, B))
    assert done.code == 3
    assert "…0199: The API refused the request (HTTP 404, code not_found)" in done.stderr
    assert unknown not in done.stderr
    assert stored(url) == held(world)
    assert (done.data["status"], done.data["numbers_failed"]) == ("partial", 1)
    log = {
        row[0]: row[1:]
        for row in select(
            url,
            "SELECT phone_number, status, completeness, error_kind, total_count, chats_inserted, "
            "finished_at IS NULL FROM sync_run_numbers",
        )
    }
    assert log[unknown] == ("failed", None, "refused", None, 0, False)
    assert {log[number][:4] for number in (A, B)} == {("succeeded", "consistent", None, 20)}


def test_each_number_is_read_with_its_own_token(tmp_path: Path) -> None:
    """A refused token fails its number only; labels are stored."""
    url = f"sqlite:///{tmp_path}/linq.db"
    config = f"""
        [sync]
        phone_numbers = [
            {{ number = "(334) 328-4472", label = "Sales", token_env = "TOKEN_SALES" }},
            {{ number = "{B}", label = "Support", token_env = "TOKEN_SUPPORT" }},
        ]
    """
    Path("config.toml").write_text(config)
    world = build_world(chats_per_number=20)
    with Sandbox(world, tokens={"sales": [A], "support": [B]}) as sandbox:
        env = environment(sandbox, url, TOKEN_SALES="sales", TOKEN_SUPPORT="stale")
        del env["LINQ_ETL_SYNC__PHONE_NUMBERS"], env["LINQ_INTEGRATION_TOKEN"]
        partial = linq_etl("sync", env=env)
    assert (partial.code, partial.stdout) == (3, "")
    assert "…0100: The API refused the token" in partial.stderr
    assert stored(url) == held(world, [A])
    labels = select(url, "SELECT phone_number, label FROM phone_numbers")
    assert dict(labels) == {A: "Sales", B: "Support"}


def test_all_phone_numbers_of_the_token_are_synced(tmp_path: Path) -> None:
    """all_phone_numbers takes them from the API; --phone-number picks some of them."""
    url, world = f"sqlite:///{tmp_path}/linq.db", build_world(chats_per_number=20)
    with Sandbox(world) as sandbox:
        env = environment(sandbox, url, LINQ_ETL_SYNC__ALL_PHONE_NUMBERS="true")
        env["LINQ_ETL_SYNC__PHONE_NUMBERS"] = ""
        one = linq_etl("sync", "--phone-number", "312-555-0100", "--json", env=env)
        assert (one.code, [n["phone_number"] for n in one.data["numbers"]]) == (0, [B])
        assert stored(url) == held(world, [B])
        every = linq_etl("sync", "--json", env=env)
    assert (every.code, {n["phone_number"] for n in every.data["numbers"]}) == (0, {A, B})
    assert stored(url) == held(world)


@pytest.mark.parametrize("order", ["recency", "id"])
def test_no_chat_is_lost_in_a_list_that_moves(order: Any, tmp_path: Path) -> None:
    """Chats listed throughout are stored, although others jump, come and go between requests."""
    url = f"sqlite:///{tmp_path}/linq.db"
    world = build_world(numbers=[A], chats_per_number=300, order=order)
    before = set(world.listing(A))
    with Sandbox(world, motion=Motion(jumps=3, creates=1, deletes=1)) as sandbox:
        done = linq_etl("sync", env=environment(sandbox, url, A, LINQ_ETL_API__PER_PAGE="20"))
    assert done.code == 0
    assert before & set(world.listing(A)) <= {row[0] for row in stored(url)["chats"]}


def test_only_changed_rows_are_written(tmp_path: Path) -> None:
    """A rename, a join and a departure reach their rows and the events, and no other row."""
    url = f"sqlite:///{tmp_path}/linq.db"
    world = build_world(numbers=[A], chats_per_number=30)
    renamed, joined, left, *_, untouched = [
        chat_id for chat_id in world.listing(A) if len(world.chat(chat_id)["chat_handles"]) > 2
    ]
    with Sandbox(world) as sandbox:
        env = environment(sandbox, url, A)
        assert linq_etl("sync", env=env).code == 0
        before = dict(select(url, "SELECT id, changed_at FROM chats"))
        world.rename(renamed, "Opening night 🎭")
        world.join(joined)
        world.leave(left)
        assert linq_etl("sync", env=env).code == 0
    assert stored(url) == held(world, [A])
    after = dict(select(url, "SELECT id, changed_at FROM chats"))
    assert {chat_id for chat_id in after if after[chat_id] != before[chat_id]} == {renamed}
    assert after[untouched] == before[untouched]
    events = select(url, "SELECT chat_id, kind, new_value FROM chat_events")
    assert {event[:2] for event in events} == {
        (renamed, "renamed"),
        (joined, "joined"),
        (left, "left"),
    }
    gone = select(url, "SELECT chat_id FROM chat_handles WHERE removed_at IS NOT NULL")
    assert gone == [(left,)]


def _json(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value


def test_a_dry_run_tells_what_a_sync_then_does(database_url: str) -> None:
    """With chats that two numbers share, one of which is new; it writes nothing, also no rate."""
    world = build_world(chats_per_number=40)
    unwritten = [name for name in metadata.tables if name not in OF_RUNS]
    with Sandbox(world) as sandbox:
        env = environment(sandbox, database_url, LINQ_ETL_API__PER_PAGE="5")
        assert call("sync", "--phone-number", A, env=env).code == 0
        shared = [each for each in world.listing(A) if world.owners(each) == (A, B)]
        own = [each for each in world.listing(B) if each not in shared]
        for gone in (shared[0], own[0]):
            world.delete(gone)
        for changed in (shared[1], own[1]):
            world.rename(changed, "Opening night")
            world.join(changed)
        world.leave_list(A, shared[2])
        before = [rows_of(database_url, name) for name in unwritten]
        sandbox.faults = Faults(rate_limit=8)
        told = call("sync", "--dry-run", "--json", env=env)
        assert [rows_of(database_url, name) for name in unwritten] == before
        sandbox.faults = Faults()
        done = call("sync", "--json", env=env)
        world.delete(shared[3])
        gone_twice = [call("sync", *dry, "--json", env=env) for dry in (["--dry-run"], [])]
    assert (told.code, done.code) == (0, 0)
    assert told.data["throttled"] > 0
    sums = [name for name in COUNTS if name.startswith(("chats_", "handles_"))]
    assert [told.data[name] for name in sums] == [done.data[name] for name in sums]
    assert (told.data["chats_removed"], told.data["chats_updated"]) == (1, 1)
    assert [each.data["chats_removed"] for each in gone_twice] == [1, 1]


def rows_of(database_url: str, table: str) -> list[str]:
    return sorted(map(repr, select(database_url, f"SELECT * FROM {table}")))
