"""Messages that arrive by the clock."""

from collections import Counter
from itertools import pairwise

import httpx

from etl.sandbox import Message, Sandbox, Traffic, World, build_world
from etl.sandbox.traffic import MOST_AT_ONCE
from etl.sandbox.world import Order
from tests.support.builders import A
from tests.support.sandbox import CHATS

HOUR, DAY, YEAR = 3600, 86_400, 365 * 86_400


class Clock:
    """Seconds, as a test sets them."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Account:
    """One number, its traffic, and every message that arrived."""

    def __init__(self, *, chats: int = 1000, seed: int = 1, order: Order = "recency") -> None:
        self.clock = Clock()
        self.messages: list[Message] = []
        self.world = build_world(numbers=(A,), chats_per_number=chats, order=order)
        self.traffic = Traffic(
            self.world,
            7000,
            clock=self.clock,
            seed=seed,
            observe=self.messages.append,
        )

    def wait_until(self, now: float) -> None:
        self.clock.now = now
        self.traffic.catch_up()

    def per_chat(self) -> list[tuple[int, int]]:
        """Chats and their messages, the busiest first."""
        return Counter(message.chat_id for message in self.messages).most_common()


def test_as_many_messages_arrive_in_a_day_as_asked() -> None:
    """At random times of the whole day, whenever the lists are read."""
    account = Account()
    counts = [0]
    for hour in range(1, 25):
        account.wait_until(hour * HOUR)
        counts.append(len(account.messages))
    times = [message.at for message in account.messages]

    assert 6700 < len(times) < 7300
    assert times == sorted(times)
    assert 0 < times[0] < times[-1] <= DAY
    hourly = [after - before for before, after in pairwise(counts)]
    assert min(hourly) > 200
    assert max(hourly) < 400


def test_a_message_is_told_with_its_count() -> None:
    """The last message of each chat has the count that the API sends."""
    account = Account()
    account.wait_until(DAY)
    last = {message.chat_id: message.message_count for message in account.messages}

    assert last == {chat_id: account.world.chat(chat_id)["message_count"] for chat_id in last}


def test_a_few_chats_get_most_messages() -> None:
    """A tenth of a thousand chats gets about two thirds, by Zipf's law."""
    account = Account()
    account.wait_until(DAY)
    per_chat = account.per_chat()

    assert 0.6 < sum(count for _, count in per_chat[:100]) / len(account.messages) < 0.75
    assert len(per_chat) > 500


def test_the_busy_chats_are_anywhere_by_id() -> None:
    """The seed determines which they are, and every message."""
    accounts = [Account(seed=seed) for seed in (1, 1, 2)]
    for account in accounts:
        account.wait_until(DAY)
    busy, again, other = ({chat_id for chat_id, _ in a.per_chat()[:20]} for a in accounts)
    ids = sorted(accounts[0].world.listing(A))
    places = [ids.index(chat_id) / len(ids) for chat_id in busy]

    assert accounts[0].messages == accounts[1].messages
    assert (busy == again, len(busy & other) < 5) == (True, True)
    assert len([place for place in places if place < 0.5]) in range(4, 17)


def test_the_messages_do_not_depend_on_the_requests() -> None:
    """The same messages arrive, read once a day or once an hour, in any order of the list."""
    once, hourly = Account(), Account(order="id")
    once.wait_until(DAY)
    for hour in range(1, 25):
        hourly.wait_until(hour * HOUR)

    assert once.messages == hourly.messages


def test_some_messages_begin_a_chat_and_some_chats_are_renamed() -> None:
    """One in fifty begins a chat, which gets more messages later; a rename moves no chat."""
    account = Account()
    before = {chat_id: account.world.chat(chat_id) for chat_id in account.world.listing(A)}
    account.wait_until(DAY)
    after = {chat_id: account.world.chat(chat_id) for chat_id in account.world.listing(A)}
    begun = after.keys() - before.keys()
    renamed = [
        chat_id
        for chat_id, chat in before.items()
        if chat.get("display_name") != after[chat_id].get("display_name")
    ]

    assert len(begun) in range(100, 180)
    assert max(after[chat_id]["message_count"] for chat_id in begun) > 1
    assert len(renamed) in range(5, 30)


def test_a_clock_that_jumps_brings_a_bounded_backlog() -> None:
    """After a year, so many messages arrive as one request can wait for; then it goes on."""
    account = Account()
    account.wait_until(YEAR)
    assert len(account.messages) == MOST_AT_ONCE
    account.wait_until(YEAR)
    assert len(account.messages) == MOST_AT_ONCE
    account.wait_until(YEAR + HOUR)
    assert 200 < len(account.messages) - MOST_AT_ONCE < 400


def test_a_clock_that_goes_back_brings_nothing() -> None:
    """The messages go on where the clock was before."""
    account = Account()
    account.wait_until(HOUR)
    arrived = len(account.messages)
    account.wait_until(0)
    assert len(account.messages) == arrived
    account.wait_until(2 * HOUR)
    assert len(account.messages) > arrived


def test_a_deleted_chat_gets_no_message() -> None:
    """The others get theirs."""
    account = Account(chats=5)
    gone = account.world.delete(account.world.listing(A)[0])
    account.wait_until(HOUR)

    chats = {chat_id for chat_id, _ in account.per_chat()}
    assert gone not in chats
    assert len(chats) >= 4


def test_the_first_message_of_an_empty_account_begins_a_chat() -> None:
    """Of its number."""
    account = Account(chats=0)
    account.wait_until(HOUR)

    assert account.messages[0].message_count == 1
    assert account.messages[0].chat_id in account.world.listing(A)


def test_a_request_is_answered_with_what_has_arrived(
    world: World, sandbox: Sandbox, client: httpx.Client
) -> None:
    """Every request, also Get Chat, sees the messages up to its time."""
    clock = Clock()
    messages: list[Message] = []
    sandbox.traffic = Traffic(world, 1_000_000, clock=clock, observe=messages.append)
    (quiet,) = client.get(CHATS, params={"phone_number": A, "per_page": 1}).json()["data"]
    assert messages == []

    clock.now = HOUR
    (head,) = client.get(CHATS, params={"phone_number": A, "per_page": 1}).json()["data"]
    in_a = [message for message in messages if A in world.owners(message.chat_id)]
    assert (head["id"], head["message_count"]) == (in_a[-1].chat_id, in_a[-1].message_count)

    clock.now = 2 * HOUR
    chat = client.get(f"{CHATS}/{quiet['id']}").json()["data"]
    assert chat["message_count"] > quiet["message_count"]
