"""Participants that are hashed or dropped: what the database, its files and the logs hold."""

import hashlib
import hmac
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from etl.sandbox import Sandbox, World, build_world
from tests.support.command import A, B, Ended, call, environment, select, snapshot

KEY = "f3c1a97be2054d68" * 2
OTHER_KEY = "0e1d2c3b4a596877" * 2


def hash_of(participant: str, key: str = KEY) -> str:
    return hmac.new(key.encode(), participant.encode(), hashlib.sha256).hexdigest()


@pytest.fixture
def world() -> World:
    """Chats with participants wherever the API can send them."""
    world = build_world(chats_per_number=60)
    group = next(i for i in world.listing(A) if world.chat(i)["group"])
    direct = next(i for i in world.listing(A) if not world.chat(i)["group"])
    name = next(
        chat["display_name"]
        for chat in map(world.chat, world.listing(B))
        if not chat.get("group", True) and re.fullmatch(r"\D+", chat["display_name"] or "")
    )
    world.rename(world.create(A), "Only a group can be called that")
    world.edit(group, display_name=f"{name}, Somebody Else", last_sender="+13125551234")
    guest = {
        "id": 900,
        "phone_number": "Ava@Example.com",
        "service": "SMS",
        "seen_by": [1, 13125551235],
    }
    world.join(direct, guest)
    unstorable = {"id": 901, "phone_number": ["+13125551236"], "12125551237": "ava1@example.com"}
    world.edit(world.listing(B)[-1], chat_handles=[unstorable], display_name="+13125551238")
    return world


@pytest.fixture
def sandbox(world: World) -> Iterator[Sandbox]:
    with Sandbox(world) as sandbox:
        yield sandbox


def participants(world: World) -> set[str]:
    """Every participant of the account that is not ours, as the API sends them anywhere."""
    text = json.dumps([world.chat(i) for i in {*world.listing(A), *world.listing(B)}])
    found = {*re.findall(r"\+1312555\d{4}|[\w.+-]+@example\.\w+|Ava@Example.com", text)}
    return {each.removeprefix("+1") for each in found} - {A[2:], B[2:]}


def held_text(database_url: str) -> str:
    """Everything that the database holds: of SQLite its files, of a server every table."""
    if database_url.startswith("sqlite"):
        files = Path(database_url.removeprefix("sqlite:///")).parent.glob("linq.db*")
        return "".join(file.read_bytes().decode("latin-1") for file in files)
    if database_url.startswith("mysql"):
        schema = "table_schema = DATABASE()"
    else:
        schema = "table_schema = current_schema()"
    tables = select(
        database_url, f"SELECT table_name FROM information_schema.tables WHERE {schema}"
    )
    return "".join(repr(select(database_url, f"SELECT * FROM {table}")) for (table,) in tables)


def run(command: str, sandbox: Sandbox, database_url: str, mode: str, **others: str) -> Ended:
    given = {"LINQ_ETL_PRIVACY__PARTICIPANTS": mode, "LINQ_ETL_PRIVACY_KEY": KEY, **others}
    return call("--log-json", *command.split(), env=environment(sandbox, database_url, **given))


@pytest.mark.parametrize("mode", ["hashed", "dropped"])
def test_nobody_stands_anywhere_in_plain(
    world: World, sandbox: Sandbox, database_url: str, mode: str
) -> None:
    """Neither in a table, nor in a file or its log, nor in what commands print."""
    syncs = [run("sync --json", sandbox, database_url, mode)]
    first = snapshot(database_url)
    syncs.append(run("sync --json", sandbox, database_url, mode))
    assert snapshot(database_url) == first
    with sandbox.lock:
        for chat_id in world.listing(A)[:9]:
            world.leave(chat_id)
            world.join(chat_id)
            world.rename(chat_id, "+13125551239")
    syncs.append(run("sync --json", sandbox, database_url, mode))
    assert [each.code for each in syncs] == [3, 3, 3]  # for the rejected record
    verified = run("verify --sample 500 --json", sandbox, database_url, mode)
    found = ("matches", "wrong", "unknown")
    assert [verified.code, *map(verified.data.get, found)] == [0, verified.data["sampled"], 0, 0]
    printed = "".join(each.stdout + each.stderr for each in (*syncs, verified))
    everything = held_text(database_url) + printed
    people = participants(world)
    assert len(people) > 100
    assert [each for each in sorted(people) if each in everything] == []
    assert [each for each in sorted(people) if each[-8:] in everything] == []
    joined = "SELECT old_value, new_value FROM chat_events WHERE kind IN ('joined', 'left')"
    events = {value for row in select(database_url, joined) for value in row if value}
    assert {len(value) for value in events} == ({64} if mode == "hashed" else set())


def told(world: World) -> list[dict[str, Any]]:
    """The account's chats, without the one that cannot be stored."""
    chats = [world.chat(i) for i in sorted({*world.listing(A), *world.listing(B)})]
    return [chat for chat in chats if not isinstance(chat["chat_handles"][0]["phone_number"], list)]


def test_what_is_stored_instead(world: World, sandbox: Sandbox, database_url: str) -> None:
    """A participant's hash anyone with the key can compute; a group's name if it names nobody."""
    chats = told(world)
    directs = {
        chat["display_name"]
        for chat in chats
        if not chat.get("group")
        and len({handle["phone_number"] for handle in chat["chat_handles"]} - {A, B}) == 1
    }
    names = {
        chat["id"]: chat["display_name"]
        for chat in chats
        if chat.get("group")
        and chat["display_name"]
        and not re.search(r"\d{5}|@", chat["display_name"])
        and not directs & {part.strip() for part in chat["display_name"].split(",")}
    }
    handles = {
        (chat["id"], handle["id"]): number
        if (number := handle["phone_number"]) in {A, B}
        else hash_of(number.lower())
        for chat in chats
        for handle in chat["chat_handles"]
    }
    for _ in range(2):
        assert run("sync", sandbox, database_url, "hashed").code == 3
        stored = select(database_url, "SELECT chat_id, id, phone_number FROM chat_handles")
        assert {tuple(row[:2]): row[2] for row in stored} == handles
        named = "SELECT id, display_name FROM chats WHERE display_name IS NOT NULL"
        assert dict(select(database_url, named)) == names
    assert "Only a group can be called that" in directs
    assert {"Lunch, then bowling", "Café crew"} & {*names.values()}
    extra = "SELECT extra FROM {} WHERE extra IS NOT NULL"
    ((sender,),) = select(database_url, extra.format("chats"))
    ((seen_by,),) = select(database_url, extra.format("chat_handles"))
    assert json_of(sender) == {"last_sender": hash_of("+13125551234")}
    assert json_of(seen_by) == {"seen_by": [1, hash_of("+13125551235")]}
    ((payload,),) = select(database_url, "SELECT DISTINCT payload FROM rejected_records")
    assert json_of(payload)["chat_handles"] == [
        {"id": 901, "phone_number": ["text"], "…": "text"},
    ]


def json_of(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value


def test_dropped(world: World, sandbox: Sandbox, database_url: str) -> None:
    """Participants are rows without a number or a name; ours stay. No key is needed."""
    nothing = {"LINQ_ETL_PRIVACY_KEY": ""}
    for _ in range(2):
        assert run("sync", sandbox, database_url, "dropped", **nothing).code == 3
        stored = select(database_url, "SELECT chat_id, id, phone_number FROM chat_handles")
        assert {tuple(row[:2]): row[2] for row in stored} == {
            (chat["id"], handle["id"]): number
            if (number := handle["phone_number"]) in {A, B}
            else None
            for chat in told(world)
            for handle in chat["chat_handles"]
        }
    for table, column in (
        ("chats", "display_name"),
        ("chats", "extra"),
        ("chat_handles", "extra"),
        ("chat_name_hashes", "name_hash"),
    ):
        assert select(database_url, f"SELECT count({column}) FROM {table}")[0][0] == 0
    assert run("verify", sandbox, database_url, "dropped", **nothing).code == 0


def test_another_key_or_mode(sandbox: Sandbox, database_url: str) -> None:
    """Exit code 2 and what to do; nothing is written, and the same mode and key go on."""
    assert run("sync", sandbox, database_url, "hashed").code == 3
    before = snapshot(database_url)
    for command in ("sync", "verify"):
        for mode, key, said in (
            ("plain", KEY, "participants is plain, but this database was filled with hashed"),
            ("dropped", "", "participants is dropped, but this database was filled with hashed"),
            ("hashed", OTHER_KEY, "The privacy key is not the one that this database was filled"),
        ):
            refused = run(command, sandbox, database_url, mode, LINQ_ETL_PRIVACY_KEY=key)
            assert (refused.code, refused.stdout) == (2, "")
            assert said in refused.stderr
            assert "database" in refused.stderr.splitlines()[-1]
            assert OTHER_KEY not in refused.stderr
    assert snapshot(database_url) == before
    kept = repr(select(database_url, "SELECT * FROM privacy"))
    assert KEY not in kept
    assert "hashed" in kept
    assert run("sync", sandbox, database_url, "hashed").code == 3
    assert snapshot(database_url) == before


def test_an_older_database_holds_participants_in_plain(sandbox: Sandbox, database_url: str) -> None:
    """It is not hashed afterwards: exit code 2, and the next plain sync writes nothing."""
    assert run("sync", sandbox, database_url, "plain", LINQ_ETL_PRIVACY_KEY="").code == 3
    assert select(database_url, "SELECT * FROM privacy") == []
    before = snapshot(database_url)
    refused = run("sync", sandbox, database_url, "hashed")
    assert refused.code == 2
    assert "set it to plain, or use a new database" in refused.stderr
    assert run("sync", sandbox, database_url, "plain", LINQ_ETL_PRIVACY_KEY=OTHER_KEY).code == 3
    assert snapshot(database_url) == before


def test_another_key_gives_other_hashes(sandbox: Sandbox) -> None:
    """And the same key gives the same ones, in any database."""
    hashes = []
    for number, key in enumerate((KEY, KEY, OTHER_KEY)):
        url = f"sqlite:///{number}.db"
        assert run("sync", sandbox, url, "hashed", LINQ_ETL_PRIVACY_KEY=key).code == 3
        query = "SELECT chat_id, id, phone_number FROM chat_handles WHERE phone_number NOT IN "
        hashes.append({*select(url, f"{query} ('{A}', '{B}')")})
    assert hashes[0] == hashes[1]
    assert not hashes[0] & hashes[2]


def test_a_number_that_becomes_ours(sandbox: Sandbox, database_url: str) -> None:
    """A number that is configured later is plain from then on, and stays so."""
    query = f"SELECT count(*) FROM chat_handles WHERE phone_number = '{B}'"
    only_a = {"LINQ_ETL_SYNC__PHONE_NUMBERS": A}
    run("sync", sandbox, database_url, "hashed", **only_a)
    assert select(database_url, query)[0][0] == 0
    run("sync", sandbox, database_url, "hashed")
    ours = select(database_url, query)[0][0]
    before = snapshot(database_url)
    run("sync", sandbox, database_url, "hashed", **only_a)
    assert ours > 0
    assert snapshot(database_url) == before


def test_check_tells_how_participants_are_stored(sandbox: Sandbox) -> None:
    """And whether the key is the right one; nothing where they are plain."""
    url = "sqlite:///linq.db"
    hashed = "participants are stored hashed"
    key = "; the key is the one of this database"

    def told(mode: str, **others: str) -> list[tuple[int, str]]:
        checked = run("check --json", sandbox, url, mode, **others)
        found = [each for each in checked.data if each["subject"] == "privacy"]
        assert checked.code == max((each["exit_code"] for each in found), default=0)
        return [(each["exit_code"], each["detail"]) for each in found]

    assert told("plain") == []
    assert told("hashed") == [(0, hashed)]
    assert run("sync", sandbox, url, "hashed").code == 3
    assert told("hashed") == [(0, hashed + key)]
    for mode, given in (("plain", KEY), ("hashed", OTHER_KEY)):
        ((code, detail),) = told(mode, LINQ_ETL_PRIVACY_KEY=given)
        assert code == 2
        assert "or use a new database" in detail


@pytest.mark.slow
def test_quick_and_dry_runs_compare_what_is_stored(database_url: str) -> None:
    """Names that are withheld are no changes: a quick run reads little, a dry one counts none."""
    sync = f"sync --phone-number {A}"
    world = build_world(numbers=(A,), chats_per_number=700)
    groups = [i for i in world.listing(A) if world.chat(i).get("group")]
    direct = next(i for i in world.listing(A) if not world.chat(i).get("group", True))
    world.rename(direct, "Ada Lovelace")
    for chat_id in groups[:50]:
        world.rename(chat_id, "Ada Lovelace, Babbage")
    with Sandbox(world) as sandbox:
        for walk in range(7):
            for chat_id in world.listing(A)[-60:] if walk else ():
                world.jump(chat_id)
            assert run(sync, sandbox, database_url, "hashed").code == 0
        dry = run(f"{sync} --dry-run --json", sandbox, database_url, "hashed").data
        quick = run(f"{sync} --quick --json", sandbox, database_url, "hashed").data
    changes = ("chats_inserted", "chats_updated", "chats_removed")
    assert [dry[name] for name in changes] == [0, 0, 0]
    assert (quick["numbers"][0]["completeness"], quick["pages"]) == ("quick", 2)
