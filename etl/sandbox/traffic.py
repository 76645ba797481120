"""Messages that arrive by the clock, whether or not anybody reads the lists."""

from collections.abc import Callable
from contextlib import suppress
from random import Random
from typing import Final, NamedTuple

from etl.sandbox.world import World

MOST_AT_ONCE: Final = 10_000  # messages; a clock that jumps by a year must not block a request
NEW_CHATS: Final = 0.02  # of the messages begin a chat
RENAMES: Final = 0.002  # per message, of any chat
_DAY = 86_400


class Message(NamedTuple):
    """When it arrived, by the clock, and the chat's count with it."""

    at: float
    chat_id: int
    message_count: int


class Traffic:
    """Messages in all chats of a world, at random times of a clock that counts seconds.

    A few chats get most of them, by Zipf's law and whatever their ids: the busiest one of n gets
    1 / ln n. Chats that the world creates otherwise get none.
    """

    def __init__(
        self,
        world: World,
        messages_per_day: float,
        *,
        clock: Callable[[], float],
        seed: int = 1,
        observe: Callable[[Message], object] = lambda _: None,
    ) -> None:
        self._world = world
        self._rate = messages_per_day / _DAY
        self._clock = clock
        self._rng = Random(seed)
        self._observe = observe
        listed = {chat_id for number in world.numbers for chat_id in world.listing(number)}
        self._busiest_first = sorted(listed)
        self._rng.shuffle(self._busiest_first)
        self._next_at = clock() + self._gap()

    def catch_up(self) -> None:
        """Let the messages arrive that are due; beyond MOST_AT_ONCE, they never do."""
        now = self._clock()
        for _ in range(MOST_AT_ONCE):
            if self._next_at > now:
                return
            # A chat that was deleted gets no message.
            with suppress(KeyError):
                self._arrive(self._next_at)
            self._next_at += self._gap()
        self._next_at = max(self._next_at, now + self._gap())

    def _gap(self) -> float:
        return self._rng.expovariate(self._rate)

    def _arrive(self, at: float) -> None:
        if self._rng.random() < RENAMES and self._busiest_first:
            self._world.rename(self._rng.choice(self._busiest_first))
        if self._rng.random() < NEW_CHATS or not self._busiest_first:
            chat_id = self._begin_chat()
        else:
            chat_id = self._world.jump(self._busiest_first[self._rank()])
        self._observe(Message(at, chat_id, self._world.chat(chat_id)["message_count"]))

    def _rank(self) -> int:
        """0 for the busiest chat; of a uniform exponent, rank r has a share of 1 / r."""
        return int((len(self._busiest_first) + 1) ** self._rng.random()) - 1

    def _begin_chat(self) -> int:
        """A chat of any number, as busy as any other."""
        chat_id = self._world.create(self._rng.choice(self._world.numbers))
        self._busiest_first.insert(self._rng.randint(0, len(self._busiest_first)), chat_id)
        return chat_id
