"""forget: a person is erased everywhere, stays away in later syncs, and nobody else changes."""

import io
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from etl.sandbox import Sandbox, build_world
from tests.support.builders import Row
from tests.support.command import (
    CLOSED_PORT,
    A,
    B,
    Ended,
    HoldingSandbox,
    call,
    ended,
    environment,
    running,
    select,
    snapshot,
    wait_until,
)
from tests.test_privacy import KEY, OTHER_KEY, hash_of, held_text

PERSON = "+13125550142"
WRITTEN = "(312) 555-0142"
ADDRESS = "Zoe.Okafor@example.org"


class Account:
    """An account with a person in many places, and the chats by what they are to the person."""

    def __init__(self, participant: str) -> None:
        self.world = world = build_world(chats_per_number=30)
        person = {"id": 5000, "phone_number": participant, "service": "SMS", "joined_at": None}
        others = [{"id": 5001 + each, "phone_number": f"+13125559{each:03}"} for each in range(3)]
        ours = {"id": 4000, "phone_number": A, "service": "SMS"}
        self.direct, self.group, self.listed, self.former, self.other, self.nameless, self.bad = (
            world.create(A) for _ in range(7)
        )

        def edit(chat_id: int, *people: Row, **fields: Any) -> None:
            world.edit(chat_id, chat_handles=[ours, *people], **{"group": True, **fields})

        edit(self.direct, person, group=False, display_name="Zoe O")
        edit(
            self.group, person, others[0], others[1], display_name="Night shift", owner=participant
        )
        edit(self.listed, person, others[0], display_name="Zoe O, Ben")
        edit(self.former, person, *others, display_name=f"Call {participant}, then eat")
        edit(self.other, others[0], group=False, display_name="Ben", seen=["Ben", participant])
        edit(self.nameless, group=False, display_name=participant)
        edit(self.bad, person | {"joined_at": "soon"}, group=False, display_name="Zoe O")
        self.person: Row = person
        # Where participants are hashed, a chat without them and without a name is nobody's.
        self.theirs = {self.direct, self.nameless}

    def change(self) -> None:
        """The person leaves one group and joins another; a group is renamed."""
        handles = self.world.chat(self.former)["chat_handles"]
        stay = [each for each in handles if each["id"] != self.person["id"]]
        self.world.edit(self.former, chat_handles=stay, display_name="Evening shift")
        group = next(i for i in self.world.listing(B) if self.world.chat(i).get("group"))
        self.joined = self.world.join(group, self.person | {"id": 5009})

    @property
    def touched(self) -> set[int]:
        """Other chats that name the person somewhere."""
        return {self.group, self.listed, self.former, self.other, self.joined}


@pytest.fixture(params=[PERSON, ADDRESS])
def account(request: pytest.FixtureRequest) -> Account:
    return Account(request.param)


@pytest.fixture
def sandbox(account: Account) -> Iterator[Sandbox]:
    with Sandbox(account.world) as sandbox:
        yield sandbox


def run(*command: str, api: Any, url: str, mode: str = "plain", **others: str) -> Ended:
    given = {"LINQ_ETL_PRIVACY__PARTICIPANTS": mode, "LINQ_ETL_PRIVACY_KEY": KEY, **others}
    return call("--log-json", *command, env=environment(api, url, **given))


def fill(account: Account, sandbox: Sandbox, url: str, mode: str) -> None:
    assert run("sync", api=sandbox, url=url, mode=mode).code == 3
    with sandbox.lock:
        account.change()
    assert run("sync", api=sandbox, url=url, mode=mode).code == 3


def forget(account: Account, url: str, mode: str = "plain", **others: str) -> Ended:
    """As an operator does; the command makes no request."""
    written = argument_for(account)
    command = ("forget", written, "--yes", "--json")
    return run(*command, api=CLOSED_PORT, url=url, mode=mode, **others)


def argument_for(account: Account) -> str:
    """How a person writes it."""
    participant = account.person["phone_number"]
    return WRITTEN if participant == PERSON else participant.upper()


def rows(url: str, account: Account) -> dict[str, list[tuple[Any, ...]]]:
    """The rows of everybody else, without those that name the person."""
    theirs = ", ".join(map(str, account.theirs))
    touched = ", ".join(map(str, account.touched))
    person = "5000, 5009"
    queries = {
        "chats": f"SELECT * FROM chats WHERE id NOT IN ({theirs}, {touched})",
        "touched": "SELECT id, service, is_group, message_count, first_seen_at, removed_at "
        f"FROM chats WHERE id IN ({touched})",
        "chat_handles": f"SELECT * FROM chat_handles WHERE id NOT IN ({person}) "
        f"AND chat_id NOT IN ({theirs})",
        **{
            table: f"SELECT * FROM {table} WHERE chat_id NOT IN ({theirs})"
            for table in ("chat_phone_numbers", "chat_message_counts")
        },
        "chat_events": "SELECT * FROM chat_events WHERE NOT (kind IN ('joined', 'left') "
        f"AND chat_id IN ({touched})) AND kind <> 'renamed' AND chat_id NOT IN ({theirs})",
        "phone_numbers": "SELECT * FROM phone_numbers",
    }
    return {name: sorted(select(url, query), key=repr) for name, query in queries.items()}


@pytest.mark.parametrize("mode", ["plain", "hashed"])
def test_a_person_is_gone(account: Account, sandbox: Sandbox, database_url: str, mode: str) -> None:
    """From every table, file and log, also after three more syncs; all others keep their rows."""
    fill(account, sandbox, database_url, mode)
    participant = account.person["phone_number"]
    stored = participant if mode == "plain" else hash_of(participant.lower())
    assert stored in held_text(database_url)
    if mode == "hashed":
        account.theirs.remove(account.nameless)
    before = rows(database_url, account)

    forgot = forget(account, database_url, mode)
    assert forgot.code == 0, forgot.stderr
    assert rows(database_url, account) == before
    printed = forgot.stdout + forgot.stderr
    after: list[Any] = []
    for _ in range(3):
        synced = run("sync", "--json", api=sandbox, url=database_url, mode=mode)
        assert synced.code == 3  # for the record that cannot be stored
        printed += synced.stdout + synced.stderr
        assert {each["phone_number"]: each["missing"] for each in synced.data["numbers"]} == {
            A: 0,
            B: 0,
        }
        assert rows(database_url, account) == before
        after.append(snapshot(database_url))
    assert after[1] == after[0]
    assert after[2] == after[0]
    everything = held_text(database_url) + printed
    if not database_url.startswith("mysql"):
        spellings = {participant, participant.lower(), stored, participant.removeprefix("+1")}
        assert [each for each in spellings if each in everything] == []
    assert "Zoe O" not in everything
    names = dict(select(database_url, "SELECT id, display_name FROM chats"))
    assert not account.theirs & names.keys()
    assert {names[each] for each in (account.group, account.former)} == {
        "Night shift",
        "Evening shift",
    }
    verified = run("verify", "--json", api=sandbox, url=database_url, mode=mode)
    assert (verified.code, verified.data["wrong"], verified.data["unknown"]) == (0, 0, 0)
    alone = len(account.theirs)
    assert forgot.data["deleted"] == {
        "chat_events": 2,
        "chat_handles": 5 + alone,
        **dict.fromkeys(("chat_message_counts", "chat_phone_numbers", "chats"), alone),
        **({"chat_name_hashes": 1} if mode == "hashed" else {"rejected_records": 2}),
    }


def test_a_sync_in_progress(account: Account, database_url: str) -> None:
    """It read the person before, or reads them with an answer of that time; it stores neither."""
    env = environment("", database_url, A, LINQ_ETL_PRIVACY_KEY=KEY, LINQ_ETL_API__PER_PAGE="5")
    with HoldingSandbox(account.world, answers=2) as sandbox:
        env["LINQ_ETL_API__BASE_URL"] = sandbox.url
        with running("sync", env=env) as process:
            wait_until(sandbox.holding.is_set, process)
            wait_until(lambda: select(database_url, "SELECT id FROM chats"), process)
            assert forget(account, database_url).code == 0
            sandbox.release()
            synced = ended(process)
    assert synced.code == 3
    assert select(database_url, "SELECT count(*) FROM chats")[0][0] > 20
    participant = account.person["phone_number"]
    assert [row for row in everything(database_url) if participant in row] == []


def test_a_sync_without_the_key(account: Account, sandbox: Sandbox, database_url: str) -> None:
    """Whoever was forgotten can be told only with the key: exit code 2 in every mode."""
    for mode in ("plain", "dropped"):
        url = database_url if mode == "plain" else "sqlite:///dropped.db"
        without = {"LINQ_ETL_PRIVACY_KEY": ""}
        assert run("sync", api=sandbox, url=url, mode=mode, **without).code == 3
        assert forget(account, url, mode, **without).code == 2
        assert forget(account, url, mode).code == 0
        before = snapshot(url)
        refused = run("sync", api=sandbox, url=url, mode=mode, **without)
        assert (refused.code, "people were forgotten in this" in refused.stderr) == (2, True)
        other = {"LINQ_ETL_PRIVACY_KEY": OTHER_KEY}
        for each in (
            run("sync", api=sandbox, url=url, mode=mode, **other),
            forget(account, url, mode, **other),
        ):
            assert (each.code, "key is not the one" in each.stderr) == (2, True)
        assert snapshot(url) == before


def test_where_participants_are_dropped(
    account: Account, sandbox: Sandbox, database_url: str
) -> None:
    """Nothing names the person, so that nothing is erased; later syncs mark them as left."""
    fill(account, sandbox, database_url, "dropped")
    before = snapshot(database_url)
    forgot = run("forget", PERSON, "--yes", api=CLOSED_PORT, url=database_url, mode="dropped")
    assert (forgot.code, forgot.stdout) == (
        0,
        "no participant is stored, so nothing was erased; later syncs leave this person out\n",
    )
    assert snapshot(database_url) == before
    assert forget(account, database_url, "dropped").code == 0
    new = account.world.create(A)
    account.world.edit(new, group=False, chat_handles=[account.person], display_name="Zoe O")
    synced = [run("sync", "--json", api=sandbox, url=database_url, mode="dropped") for _ in "12"]
    assert [each.data["chats_inserted"] for each in synced] == [0, 0]
    assert [each.data["handles_removed"] for each in synced] == [3, 0]
    assert [each["missing"] for each in synced[1].data["numbers"]] == [0, 0]
    verified = run("verify", "--json", api=sandbox, url=database_url, mode="dropped")
    assert (verified.code, verified.data["wrong"]) == (0, 0)


@pytest.mark.parametrize("participant", [A, "(334) 328-4472", B])
def test_our_own_numbers(account: Account, sandbox: Sandbox, participant: str) -> None:
    """Exit code 2, also for one that is no longer configured."""
    url = "sqlite:///linq.db"
    run("sync", api=sandbox, url=url)
    before = snapshot(url)
    env = environment(CLOSED_PORT, url, "+13125550100", LINQ_ETL_PRIVACY_KEY=KEY)
    refused = call("forget", participant, "--yes", env=env)
    assert (refused.code, refused.stdout) == (2, "")
    assert "one of the configured numbers" in refused.stderr
    assert snapshot(url) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((PERSON,), "Without a terminal, confirm with --yes."),
        (("zoe", "--yes"), "that is not a phone number"),
        (("555-01", "--yes"), "that is not a complete phone number"),
        (("@example.org", "--yes"), "or an e-mail address"),
    ],
)
def test_what_is_refused(sandbox: Sandbox, arguments: tuple[str, ...], said: str) -> None:
    """Exit code 2, nothing is written, and no error repeats a participant."""
    url = "sqlite:///linq.db"
    run("sync", api=sandbox, url=url)
    before = snapshot(url)
    refused = run("forget", *arguments, api=CLOSED_PORT, url=url)
    assert (refused.code, refused.stdout) == (2, "")
    assert said in refused.stderr
    assert not {"0142", "zoe"} & {*re.findall(r"\w+", refused.stderr)}
    assert snapshot(url) == before
    assert select(url, "SELECT * FROM forgotten") == []


def test_the_participant_from_stdin(
    account: Account, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With -, so that it stands in no list of processes; the second time finds nothing."""
    url = "sqlite:///linq.db"
    run("sync", api=sandbox, url=url)
    for said in (r"deleted: \d+ rows of chat_\w+, .*", "deleted: nothing"):
        monkeypatch.setattr("sys.stdin", io.StringIO(f" {argument_for(account)}\n"))
        forgot = run("forget", "-", "--yes", api=CLOSED_PORT, url=url)
        assert forgot.code == 0
        lines = forgot.stdout.splitlines()
        assert re.fullmatch(said, lines[0])
        assert lines[-1] == "later syncs leave this person out"
    assert len(select(url, "SELECT * FROM forgotten")) == 1


def test_a_reader_keeps_remains(account: Account, sandbox: Sandbox) -> None:
    """While another program reads a SQLite file, its -wal stays; forget says so."""
    url = "sqlite:///linq.db"
    run("sync", api=sandbox, url=url)
    with closing(sqlite3.connect("linq.db", isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM chats").fetchone()
        forgot = forget(account, url)
        assert forgot.code == 0
        assert "run it again when no other program uses the file" in forgot.data["left"]
    assert forget(account, url).data["left"] is None
    assert account.person["phone_number"] not in held_text(url)


def everything(url: str) -> list[str]:
    """Every row of the tables that can hold a person."""
    tables = ("chats", "chat_handles", "chat_events", "rejected_records")
    return [repr(row) for table in tables for row in select(url, f"SELECT * FROM {table}")]
