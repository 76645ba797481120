"""Quick runs: what they read, what they leave to a full walk, and what they publish."""

from random import Random
from typing import Any

import pytest
from sqlalchemy import Engine

from etl.db.tables import chat_phone_numbers, chats, list_orders, list_walks, quick_recall
from etl.sandbox.world import Order
from etl.sync.run import RunResult
from tests.support.account import UNLIMITED, Account, number_in
from tests.support.builders import A, B, Row, Rows

CHATS = 400  # on a hundred pages
WALK = 102  # requests for them


@pytest.fixture
def account(engine: Engine, rows: Rows) -> Account:
    return Account(engine, rows)


def learn(
    account: Account,
    order: Order = "recency",
    *,
    walks: int = 6,
    jumps: int = 60,
    shared: int = 0,
) -> None:
    """Full walks, of which the first one finds no change."""
    account.populate(CHATS, order=order, shared=shared)
    for walk in range(walks):
        if walk:
            jump(account, *Random(walk).sample(range(CHATS), jumps))
        account.sync()


def jump(account: Account, *positions: int) -> None:
    for chat_id in [account.listed[position] for position in positions]:
        account.world.jump(chat_id)


def quick(account: Account, **options: Any) -> RunResult:
    return account.sync(mode="quick", **options)


def end_of(result: RunResult) -> tuple[Any, ...]:
    number = number_in(result)
    return (result.exit_code, *(number[name] for name in ("status", "completeness", "reason")))


def is_stored(account: Account) -> bool:
    """Whether the message counts in the tables equal those of the API."""
    listed = {chat_id: account.world.chat(chat_id) for chat_id in account.listed}
    stored = {row["id"]: row for row in account.rows(chats) if not row["removed_at"]}
    return listed.keys() == stored.keys() and all(
        chat.get("message_count") == stored[chat_id]["message_count"]
        for chat_id, chat in listed.items()
        if "message_count" in chat
    )


def known(account: Account) -> Row:
    (row,) = account.rows(list_orders)
    return row


# What a quick run reads


def test_a_quick_run_reads_only_where_changes_are(account: Account) -> None:
    """The pages up to the first one without a change, and one of the others as an audit."""
    learn(account)
    jump(account, 300, 200, 7)
    for _ in range(2):
        account.world.create(A)
    before = account.api.requests
    result = quick(account)
    assert end_of(result) == (0, "succeeded", "quick", None)
    assert account.api.requests - before == 4
    assert is_stored(account)


def test_a_quick_run_that_finds_nothing_writes_no_data(account: Account) -> None:
    """It reads the first page and an audit page."""
    learn(account)
    before, requests = account.links(), account.api.requests
    assert end_of(quick(account)) == (0, "succeeded", "quick", None)
    assert (account.links(), account.api.requests - requests) == (before, 2)


@pytest.mark.slow
def test_every_page_is_audited_in_turn(account: Account) -> None:
    """Renames move no chat in the list; each is found within as many runs as there are pages."""
    learn(account)
    for chat_id in account.listed[4:]:
        account.world.rename(chat_id)
    names = {chat_id: account.world.chat(chat_id).get("display_name") for chat_id in account.listed}
    for _ in range(CHATS // 4):
        assert number_in(quick(account))["completeness"] == "quick"
    assert {row["id"]: row["display_name"] for row in account.rows(chats)} == names


def test_changes_that_another_number_has_stored_do_not_end_the_reading(account: Account) -> None:
    """A page of such chats is not taken for unchanged."""
    learn(account, shared=8)
    shared = [each for each in account.listed if B in account.world.owners(each)]
    other = next(each for each in account.listed[300:] if each not in shared)
    for chat_id in (other, *shared):
        account.world.jump(chat_id)
    account.sync(B)
    assert end_of(quick(account)) == (0, "succeeded", "quick", None)
    assert is_stored(account)


# When the list is read in full


@pytest.mark.parametrize(
    ("walks", "jumps", "why"),
    [
        (5, 74, "5 of 5 full walks, 296 of 300 changed chats"),
        (4, 150, "4 of 5 full walks, 300 of 300 changed chats"),
    ],
)
def test_quick_readings_need_evidence(account: Account, walks: int, jumps: int, why: str) -> None:
    """Five full walks that together saw 300 changed chats."""
    learn(account, walks=walks, jumps=jumps)
    reason = f"read in full, because the order of the list is not known yet: {why}"
    assert end_of(quick(account)) == (0, "succeeded", "consistent", reason)


@pytest.mark.parametrize("order", ["id", "id-desc", "shuffled"])
def test_other_orders_are_read_in_full(account: Account, order: Order) -> None:
    """The recall, which is published either way, is too low for quick readings."""
    learn(account, order, walks=8)
    result = quick(account)
    number = number_in(result)
    assert number["completeness"] != "quick"
    assert "quick readings miss changes" in number["reason"]
    assert known(account)["list_order"] == (order if order != "shuffled" else "unknown")
    assert number["quick_recall_lower"] < 0.5


def test_a_full_reading_that_is_old_is_repeated(account: Account) -> None:
    learn(account)
    reason = "read in full, because the last full reading is old"
    assert end_of(quick(account, full_every="0s")) == (0, "succeeded", "consistent", reason)


def test_a_chat_created_where_no_quick_reading_looks_is_found_at_once(account: Account) -> None:
    """By the API's count of chats."""
    learn(account)
    account.world.reorder("id")
    created = account.world.create(A)
    quick(account)  # The first page has moved.
    account.world.create(A)
    result = quick(account)
    assert created in {row["id"] for row in account.rows(chats)}
    assert is_stored(account)
    assert "chats, and 0 new ones were found" in number_in(result)["reason"]


def test_a_removed_chat_is_a_reason_for_a_full_walk(account: Account) -> None:
    learn(account)
    gone = account.world.delete(account.listed[250])
    result = quick(account)
    reason = (
        "read in full, because the API's count went from 400 to 399 chats, and 0 new ones were "
        "found where quick readings look"
    )
    assert end_of(result) == (0, "succeeded", "consistent", reason)
    assert account.removed() == {gone}


def test_a_quick_reading_removes_nothing(account: Account) -> None:
    """That is left to a full walk, for which the requests do not suffice here."""
    learn(account)
    gone = account.world.delete(account.listed[250])
    for _ in range(2):
        assert number_in(quick(account, max_requests=10))["status"] == "partial"
    assert account.removed() == set()
    quick(account)
    assert account.removed() == {gone}


def test_a_list_of_which_most_has_changed_is_read_in_full(account: Account) -> None:
    learn(account)
    jump(account, *range(CHATS - 1, 100, -1))
    result = quick(account)
    assert number_in(result)["reason"] == "read in full, because most of its pages have changed"
    assert is_stored(account)


def test_a_short_list_is_read_in_full(account: Account) -> None:
    """That takes no more requests; nothing is noted of its order."""
    account.populate(8)
    for _ in range(7):
        account.sync()
    assert number_in(quick(account))["completeness"] == "consistent"
    assert account.rows(list_orders) == account.rows(list_walks) == []


def test_a_count_of_pages_beyond_reason_is_not_believed(account: Account) -> None:
    """The list is read in full instead, within the bounds of any walk."""
    learn(account)
    answer = account.world.page

    def page(number: str, page_number: int, per_page: int) -> dict[str, Any]:
        found = answer(number, page_number, per_page)
        meta = {**found["meta"], "total_pages": 10**15, "total_count": 4 * 10**15}
        return {**found, "meta": meta} if page_number < 100 else found

    account.world.page = page  # type: ignore[assignment,method-assign]
    result = quick(account)
    account.world.page = answer  # type: ignore[method-assign]
    assert "read in full, because the API did not count the list" in number_in(result)["reason"]
    assert end_of(account.sync())[:3] == (0, "succeeded", "consistent")


# What is measured


def test_a_full_walk_publishes_what_quick_readings_find(account: Account) -> None:
    """Of the walks that are the evidence, with the exact lower bound."""
    learn(account)
    jump(account, 399, 398)
    quick(account)
    jump(account, 390, 389, 388)
    account.world.rename(account.listed[350])
    number = number_in(account.sync())
    bound = pytest.approx(0.05 ** (1 / 305))
    published = ("quick_hits", "quick_misses", "quick_recall_lower")
    assert [number[name] for name in published] == [305, 0, bound]
    recalls = {
        row["kind"]: (row["hits"], row["misses"], row["lower_bound"])
        for row in account.rows(quick_recall)
        if row["run_id"] == number["run_id"]
    }
    assert recalls == {
        "messages": (305, 0, bound),
        "new": (0, 0, 0),
        "names": (0, 1, 0),
        "participants": (0, 0, 0),
    }


@pytest.mark.slow
def test_a_list_that_changes_its_order_turns_quick_readings_off(account: Account) -> None:
    """An audit page or the next full walk finds what quick readings missed, and says so."""
    learn(account)
    account.world.reorder("id")
    reasons = []
    for run in range(12):
        jump(account, *Random(run).sample(range(CHATS), 20))
        reasons.append(number_in(quick(account))["reason"] or "")
    assert any("the list has changed its order: quick readings missed" in each for each in reasons)
    assert "the order of the list is not known yet" in reasons[-1]
    assert is_stored(account)


def test_quick_readings_are_on_again_once_the_evidence_is_good(account: Account) -> None:
    learn(account, "id")
    account.world.reorder("recency")
    for run in range(6):
        jump(account, *Random(run).sample(range(CHATS), 60))
        account.sync()
    assert number_in(quick(account))["completeness"] == "quick"


def test_what_an_audit_finds_counts_as_missed(account: Account) -> None:
    """The rule of quick readings would not have found it, and the list is walked at once."""
    learn(account)
    for chat_id in account.listed[8:]:
        count = account.world.chat(chat_id).get("message_count") or 0
        account.world.edit(chat_id, message_count=count + 1)
    number = number_in(quick(account))
    assert "had changed chats, though none was expected there" in number["reason"]
    assert number["quick_misses"] == 4
    assert is_stored(account)


def test_an_alarm_outlives_its_run(account: Account) -> None:
    """If the walk after it fails, the next run reads the list in full."""
    learn(account)
    for chat_id in account.listed[8:]:
        count = account.world.chat(chat_id).get("message_count") or 0
        account.world.edit(chat_id, message_count=count + 1)
    account.api.good_pages = 10
    assert number_in(quick(account))["status"] == "failed"
    account.api.good_pages = UNLIMITED
    reason = number_in(quick(account))["reason"]
    assert reason.startswith("read in full, because page ")
    assert is_stored(account)


def test_an_empty_page_is_not_taken_for_unchanged(account: Account) -> None:
    """The first page comes without chats, although the API counts them."""
    learn(account)
    jump(account, 300)
    answer = account.world.page

    def page(number: str, page_number: int, per_page: int) -> dict[str, Any]:
        found = answer(number, page_number, per_page)
        return {**found, "data": []} if page_number == 1 else found

    account.world.page = page  # type: ignore[assignment,method-assign]
    assert number_in(quick(account))["completeness"] != "quick"
    account.world.page = answer  # type: ignore[method-assign]
    quick(account)
    assert is_stored(account)


def test_a_walk_on_which_most_chats_changed_says_nothing(account: Account) -> None:
    """In any order, changes would be on nearly every page."""
    account.populate(CHATS, order="id")
    account.sync()
    jump(account, *range(CHATS))
    number = number_in(account.sync())
    assert (number["quick_hits"], number["quick_misses"]) == (0, 0)


@pytest.mark.slow
def test_few_walks_are_kept(account: Account) -> None:
    """No more than are needed to judge quick readings, and twenty."""
    learn(account, walks=30, jumps=60)
    runs = [row["run_id"] for row in account.rows(list_walks)]
    assert runs == list(range(11, 31))


# Proofs, and what counts as complete


def test_a_quick_reading_voids_the_proof_of_the_walk_before(account: Account) -> None:
    """What it saw, the walk had not seen."""
    learn(account)
    quick(account)
    account.sync()
    assert account.completeness()[-3:] == ["consistent", "quick", "consistent"]


def test_a_quick_reading_is_not_complete(account: Account) -> None:
    learn(account)
    assert quick(account, require_complete=True).exit_code == 3


def test_the_next_walk_is_not_taken_for_the_second_of_two(account: Account) -> None:
    """A chat that only a quick reading saw is no chat that the walk before had seen."""
    learn(account)
    jump(account, 200)
    quick(account)
    assert {row["removed_at"] for row in account.rows(chat_phone_numbers)} == {None}
