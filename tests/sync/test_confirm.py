"""What happens to known chats that a walk does not see: whole syncs of a changing account."""

import pytest
from sqlalchemy import Engine

from etl.db.tables import (
    chat_events,
    chat_handles,
    chat_message_counts,
    chat_phone_numbers,
    chats,
    sync_run_numbers,
    sync_runs,
)
from etl.sync.confirm import suspicious
from tests.support.account import UNLIMITED, Account, number_in
from tests.support.builders import A, B, Rows, count_row, event_row

SENDER = {"id": 900, "phone_number": "+12025550199", "service": "SMS"}


@pytest.fixture
def account(engine: Engine, rows: Rows) -> Account:
    return Account(engine, rows)


# Gone


def test_a_deleted_chat_is_marked_in_the_next_sync(account: Account) -> None:
    """Its row, its link, an event and the counts say so; no other row changes."""
    account.sync()
    tables = (chats, chat_phone_numbers, chat_handles, chat_message_counts)
    before = {table: account.rows(table) for table in tables}
    dead = account.world.delete(account.listed[5])
    result = account.sync()
    at = account.chat(dead)["removed_at"]
    assert at is not None
    assert account.rows(chats) == [
        row | {"removed_at": at, "changed_at": at} if row["id"] == dead else row
        for row in before[chats]
    ]
    assert account.rows(chat_phone_numbers) == [
        row | {"removed_at": at} if row["chat_id"] == dead else row
        for row in before[chat_phone_numbers]
    ]
    assert account.rows(chat_handles) == before[chat_handles]
    assert account.rows(chat_message_counts) == before[chat_message_counts]
    assert account.rows(chat_events) == [
        event_row("removed", id=1, run_id=2, observed_at=at, chat_id=dead)
    ]
    run = result.record
    assert (result.exit_code, run["status"], run["chats_removed"]) == (0, "succeeded", 1)
    number = number_in(result)
    assert (number["chats_removed"], number["missing"], number["reason"]) == (1, 0, None)
    assert account.api.asked == [dead]


def test_a_removed_chat_is_not_asked_for_again(account: Account) -> None:
    """It costs no further request and makes no further event."""
    account.sync()
    account.world.delete(account.listed[0])
    account.sync()
    before = [account.rows(table) for table in (chats, chat_phone_numbers, chat_events)]
    account.sync()
    assert account.api.asked == []
    assert [account.rows(t) for t in (chats, chat_phone_numbers, chat_events)] == before


def test_a_chat_that_comes_back_is_restored(account: Account) -> None:
    """Its row and its link are as before; an event says that it was removed, another restored."""
    account.sync()
    chat_id = account.listed[3]
    chat, link = account.chat(chat_id), account.link(chat_id)
    account.world.delete(chat_id)
    account.sync()
    account.world.restore(chat_id)
    account.sync()
    restored = account.chat(chat_id)
    assert restored == chat | {"changed_at": restored["changed_at"]}
    assert restored["changed_at"] > chat["changed_at"]
    assert account.link(chat_id) == link
    assert account.events() == [
        (2, chat_id, "removed", None, None),
        (3, chat_id, "restored", None, None),
    ]


# Alive, but not listed


def test_a_living_chat_that_is_missing_stays_and_is_refreshed(account: Account) -> None:
    """Its link says since when it is missing; the answer of Get Chat is stored."""
    account.sync()
    chat_id = account.listed[4]
    chat, link = account.chat(chat_id), account.link(chat_id)
    account.world.leave_list(A, chat_id)
    account.world.rename(chat_id, "Opening night")
    result = account.sync()
    now = account.chat(chat_id)
    assert now == chat | {"display_name": "Opening night", "changed_at": now["changed_at"]}
    since = account.link(chat_id)["missing_since"]
    assert since is not None
    assert account.link(chat_id) == link | {"missing_since": since}
    number = number_in(result)
    assert (result.exit_code, number["status"], number["missing"]) == (0, "succeeded", 1)
    assert (number["chats_removed"], number["chats_updated"]) == (0, 1)
    assert account.events() == [(2, chat_id, "renamed", chat["display_name"], "Opening night")]


def test_a_missing_chat_that_is_seen_again_is_not_missing(account: Account) -> None:
    """Its link is as before, and there is no event."""
    account.sync()
    chat_id = account.listed[4]
    before = account.link(chat_id)
    account.world.leave_list(A, chat_id)
    account.sync()
    assert account.link(chat_id) != before
    account.world.restore(chat_id)
    account.sync()
    assert account.link(chat_id) == before
    assert account.events() == []


def test_a_chat_that_left_a_list_is_not_gone(account: Account) -> None:
    """A second consistent walk ends its link; the chat stays, and is no longer asked for."""
    account.sync()
    chat_id = account.listed[4]
    chat, link = account.chat(chat_id), account.link(chat_id)
    account.world.leave_list(A, chat_id)
    account.sync()
    second = account.sync()
    at = account.link(chat_id)["removed_at"]
    assert at is not None
    assert account.link(chat_id) == link | {"removed_at": at}
    assert account.chat(chat_id) == chat
    assert (second.record["chats_removed"], number_in(second)["missing"]) == (0, 0)
    account.sync()
    assert account.api.asked == []
    account.world.restore(chat_id)
    account.sync()
    assert account.link(chat_id) == link
    assert account.events() == []


def test_an_unproved_walk_ends_no_link(account: Account) -> None:
    """A living chat missed twice keeps its link if the walks were not consistent."""
    account.populate(20, order="shuffled")
    account.sync()
    chat_id = account.rows(chat_phone_numbers)[0]["chat_id"]
    account.world.leave_list(A, chat_id)
    for _ in range(2):
        assert number_in(account.sync())["completeness"] == "unproved"
    link = account.link(chat_id)
    assert link["removed_at"] is None
    assert link["missing_since"] is not None


def test_a_chat_is_removed_once_no_number_lists_it(account: Account) -> None:
    """Each number's sync ends its own link to a shared chat; the last one removes the chat."""
    account.world.populate([(A, B)])
    shared = next(iter(account.world.listing(B)))
    account.world.create(B)
    account.sync(A)
    account.sync(B)
    account.world.delete(shared)
    assert account.sync(A).record["chats_removed"] == 0
    assert account.link(shared, A)["removed_at"] is not None
    assert account.link(shared, B)["removed_at"] is None
    assert account.chat(shared)["removed_at"] is None
    assert account.sync(B).record["chats_removed"] == 1
    assert account.link(shared, B)["removed_at"] is not None
    assert account.chat(shared)["removed_at"] is not None
    assert account.events() == [(4, shared, "removed", None, None)]


# Withheld


def test_an_empty_list_removes_no_chat(account: Account) -> None:
    """The run is partial and names --allow-removals, which asks for all chats and removes them."""
    account.sync()
    before = account.links()
    for chat_id in account.listed:
        account.world.delete(chat_id)
    result = account.sync()
    assert account.links() == before
    number = number_in(result)
    assert (result.exit_code, number["status"], number["missing"]) == (3, "partial", 12)
    assert number["reason"].startswith("the list came back empty but 12 chats were known; ")
    assert "--allow-removals" in number["reason"]
    assert account.api.asked == []
    assert account.sync(allow_removals=True).record["chats_removed"] == 12
    assert len(account.removed()) == 12


def test_suspiciously_many_removals_are_withheld(account: Account) -> None:
    """If over 10 and over 10 % are gone, none is marked without --allow-removals."""
    account.populate(40)
    account.sync()
    before = account.links()
    dead = {account.world.delete(chat_id) for chat_id in account.listed[:11]}
    result = account.sync()
    number = number_in(result)
    assert (result.exit_code, number["status"], number["missing"]) == (3, "partial", 11)
    assert "11 of 40 known chats are gone or not listed; removals" in number["reason"]
    assert "--allow-removals" in number["reason"]
    assert account.links() == before
    allowed = account.sync(allow_removals=True)
    assert (allowed.exit_code, allowed.record["chats_removed"]) == (0, 11)
    assert account.removed() == dead


def test_ten_removals_are_never_suspicious(account: Account) -> None:
    """If ten of twelve chats are gone, all ten are marked."""
    account.sync()
    dead = {account.world.delete(chat_id) for chat_id in account.listed[:10]}
    assert account.sync().exit_code == 0
    assert account.removed() == dead


@pytest.mark.parametrize(
    ("gone", "known", "is_suspicious"),
    [
        (10, 10, False),
        (11, 11, True),
        (11, 109, True),
        (11, 110, False),
        (12, 110, True),
        (100, 1000, False),
        (101, 1000, True),
        (0, 0, False),
    ],
)
def test_suspicious_is_more_than_ten_and_more_than_a_tenth(
    gone: int, known: int, is_suspicious: bool
) -> None:
    """Both bounds have to be exceeded."""
    assert suspicious(gone, known) == is_suspicious


def test_a_number_that_the_token_lost_keeps_its_chats(account: Account) -> None:
    """If the token's numbers do not include it, no chat is asked for or marked."""
    account.sync()
    account.world.delete(account.listed[0])
    account.api.reached = (B,)
    before = account.links()
    result = account.sync()
    number = number_in(result)
    assert (result.exit_code, number["status"], number["missing"]) == (3, "partial", 1)
    assert number["reason"].startswith("the token's numbers do not include this one; ")
    assert account.api.asked == []
    assert account.links() == before


def test_a_token_that_may_not_list_numbers_can_still_remove(account: Account) -> None:
    """If List Phone Numbers is refused, removals go on."""
    account.sync()
    dead = account.world.delete(account.listed[0])
    account.api.refuses_numbers = True
    assert account.sync().exit_code == 0
    assert account.removed() == {dead}


def test_a_number_that_may_be_lost_keeps_its_chats(account: Account) -> None:
    """If List Phone Numbers gets no answer, no chat is asked for or marked."""
    account.sync()
    account.world.delete(account.listed[0])
    account.api.hides_numbers = True
    result = account.sync()
    reason = "whether the token still reaches the number is unknown; removals are withheld"
    assert (result.exit_code, number_in(result)["reason"]) == (3, reason)
    assert (account.api.asked, account.removed(), account.absent()) == ([], set(), set())


# Unknown


def test_a_chat_without_an_answer_is_unknown(account: Account) -> None:
    """If the API fails in between, its answers so far count; the other chats stay missing."""
    account.sync()
    for chat_id in account.listed[:4]:
        account.world.delete(chat_id)
    account.api.good_answers = 2
    result = account.sync()
    assert len(account.api.asked) == 3
    answered = set(account.api.asked[:2])
    number = number_in(result)
    assert (result.exit_code, number["status"]) == (3, "partial")
    assert (number["chats_removed"], number["missing"]) == (2, 2)
    assert "2 missing chats are unknown" in number["reason"]
    assert account.removed() == answered
    account.api.good_answers = UNLIMITED
    assert account.sync().exit_code == 0
    assert len(account.removed()) == 4


def test_a_refused_answer_is_no_proof(account: Account) -> None:
    """A chat that the API refuses to show stays; the others are asked for all the same."""
    account.sync()
    first, second = (account.world.delete(chat_id) for chat_id in account.listed[:2])
    account.api.refused_chats = {first}
    result = account.sync()
    assert sorted(account.api.asked) == sorted((first, second))
    assert (result.exit_code, account.removed()) == (3, {second})
    assert account.link(first)["missing_since"] is not None


def test_max_confirmations_limits_how_many_are_asked_for(account: Account) -> None:
    """The others stay missing and the run is partial; the next run asks for them first."""
    account.sync()
    old = {account.world.delete(chat_id) for chat_id in account.listed[-5:]}
    first = account.sync(max_confirmations=3)
    asked = set(account.api.asked)
    assert (first.exit_code, len(asked), account.removed()) == (3, 3, asked)
    assert "2 missing chats are unknown" in number_in(first)["reason"]
    account.world.delete(min(account.listed))
    account.sync(max_confirmations=2)
    assert set(account.api.asked) == old - asked
    assert account.removed() == old


# Walks that fail


def test_a_failed_walk_removes_no_chat(account: Account) -> None:
    """Pages already read stay stored; chats that were not seen are not even marked missing."""
    account.sync()
    chat_id = account.world.delete(account.listed[-1])
    newest = account.world.create(A)
    account.api.good_pages = 2
    result = account.sync()
    assert (result.exit_code, result.record["status"]) == (5, "failed")
    assert number_in(result)["completeness"] is None
    assert (account.removed(), account.absent()) == (set(), set())
    assert account.chat(newest)["removed_at"] is None
    account.api.good_pages = UNLIMITED
    account.sync()
    assert account.removed() == {chat_id}


def test_an_interrupted_walk_removes_no_chat(account: Account) -> None:
    """The run is closed as interrupted; the next one starts over and marks the gone chat."""
    account.sync()
    chat_id = account.world.delete(account.listed[-1])
    account.interrupt(after_pages=2)
    assert account.rows(sync_runs)[-1]["status"] == "interrupted"
    assert (account.removed(), account.absent()) == (set(), set())
    account.sync()
    assert account.removed() == {chat_id}


# Proof


def test_the_next_sync_proves_the_one_before(account: Account) -> None:
    """If the list did not change, the earlier run's entry becomes `proved`, at no extra request."""
    first = account.sync()
    assert number_in(first)["completeness"] == "consistent"
    before = account.api.requests
    account.sync()
    assert account.completeness() == ["proved", "consistent"]
    assert account.api.requests == 2 * before - 1  # It lists the phone numbers once an hour.


def test_chats_that_came_later_do_not_prevent_a_proof(account: Account) -> None:
    """The chats seen in both walks are still as many as the first walk last counted."""
    account.sync()
    account.world.create(A)
    account.sync()
    assert account.completeness() == ["proved", "consistent"]


def test_a_deleted_chat_prevents_a_proof(account: Account) -> None:
    """It was not seen in both walks, so one chat is missing from the count."""
    account.sync()
    account.world.create(A)
    account.world.delete(account.listed[3])
    account.sync()
    account.sync()
    assert account.completeness() == ["consistent", "proved", "consistent"]


def test_an_unproved_walk_can_be_proved_by_the_next(account: Account) -> None:
    """Its reason is cleared."""
    account.api.changes = [[], [], [lambda world: world.create(A)]]
    first = number_in(account.sync(max_passes=1))
    assert first["completeness"] == "unproved"
    assert first["reason"] == "the list went from 12 to 13 while it was read"
    account.sync()
    proved = {"completeness": "proved", "reason": None}
    assert account.rows(sync_run_numbers)[0] == first | proved


def test_a_failed_run_in_between_prevents_a_proof(account: Account) -> None:
    """Only the number's last walk can be proved."""
    account.sync()
    account.api.good_pages = 2
    account.sync()
    account.api.good_pages = UNLIMITED
    account.sync()
    assert account.completeness() == ["consistent", None, "consistent"]


def test_a_partial_run_in_between_prevents_a_proof(account: Account) -> None:
    """A run with unknown chats proves no other and is not proved."""
    account.sync()
    account.world.delete(account.listed[0])
    account.sync(max_confirmations=0)
    account.sync()
    assert account.completeness() == ["consistent"] * 3


def test_a_backfill_in_between_prevents_a_proof(account: Account) -> None:
    """Its page range is then the number's last entry, and that was no walk."""
    account.sync()
    account.sync(command="backfill", first_page=2, last_page=3)
    account.sync()
    assert account.completeness() == ["consistent", None, "consistent"]


def test_prove_walks_twice(account: Account) -> None:
    """`--prove` needs no second run, but a second walk."""
    account.sync()
    once = account.api.requests - 1  # One listed the phone numbers.
    result = account.sync(prove=True)
    number = number_in(result)
    assert (number["completeness"], number["reason"]) == ("proved", None)
    assert account.api.requests == 3 * once + 1


def test_require_complete_fails_for_an_unproved_list(account: Account) -> None:
    """A list shuffled per request is unproved: exit code 0, or 3 with --require-complete."""
    account.populate(20, order="shuffled")
    plain = account.sync()
    assert (plain.exit_code, number_in(plain)["completeness"]) == (0, "unproved")
    assert number_in(plain)["reason"]
    assert account.sync(require_complete=True).exit_code == 3


def test_require_complete_accepts_a_consistent_list(account: Account) -> None:
    """It does not ask for a proof."""
    assert account.sync(require_complete=True).exit_code == 0


# History


def test_a_first_sync_writes_counts_but_no_events(account: Account) -> None:
    """Each chat's first message count is stored; chats of a first full read get no `created`."""
    account.sync()
    assert account.events() == []
    assert account.rows(chat_message_counts) == [
        count_row(row["id"], row["first_seen_at"], row["message_count"])
        for row in account.rows(chats)
    ]


def test_a_failed_first_sync_is_no_full_read(account: Account) -> None:
    """The next sync finds the remaining chats, and writes no `created` event for them either."""
    account.api.good_pages = 2
    account.sync()
    account.api.good_pages = UNLIMITED
    account.sync()
    assert len(account.rows(chats)) == 12
    assert account.events() == []


def test_every_later_change_is_an_event(account: Account) -> None:
    """Each kind has its chat, and the value before and after."""
    world = account.world
    renamed, moved, grouped, joined, left, dead, *_ = sorted(account.listed)
    world.edit(renamed, display_name="Old name")
    world.edit(moved, service="SMS")
    world.edit(grouped, group=False)
    world.edit(left, chat_handles=[*world.chat(left)["chat_handles"], SENDER])
    account.sync()
    world.rename(renamed, "New name")
    world.change_service(moved, "RCS")
    world.edit(grouped, group=True)
    world.join(joined, SENDER)
    world.edit(left, chat_handles=world.chat(left)["chat_handles"][:-1])
    world.delete(dead)
    created = world.create(A)
    account.sync()
    assert sorted(account.events()) == sorted(
        [
            (2, created, "created", None, None),
            (2, renamed, "renamed", "Old name", "New name"),
            (2, moved, "service_changed", "SMS", "RCS"),
            (2, grouped, "group_changed", "false", "true"),
            (2, joined, "joined", None, SENDER["phone_number"]),
            (2, left, "left", SENDER["phone_number"], None),
            (2, dead, "removed", None, None),
        ],
        key=lambda event: event[:3],
    )


def test_a_changed_message_count_gets_a_row(account: Account) -> None:
    """The chat with a new message gets one, the others none."""
    account.sync()
    before = account.rows(chat_message_counts)
    busy = account.listed[7]
    account.world.jump(busy)
    account.sync()
    chat = account.chat(busy)
    new = [row for row in account.rows(chat_message_counts) if row not in before]
    message_count = account.world.chat(busy)["message_count"]
    read_at = {row["chat_id"]: row["observed_at"] for row in before}[busy]
    gain = {"gained": 1, "since": read_at}
    assert new == [count_row(busy, chat["changed_at"], message_count, run_id=2, **gain)]
    account.sync()
    assert len(account.rows(chat_message_counts)) == len(before) + 1
    assert account.events() == []
