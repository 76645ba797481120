"""The account: its chats, the list of each phone number, and how they change. No HTTP."""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Literal

from etl.sandbox.invent import SERVICES, Inventor

Order = Literal["id", "id-desc", "recency", "shuffled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Motion:
    """Changes per List Chats request; 0.5 is one after every second request."""

    jumps: float = 0
    creates: float = 0
    deletes: float = 0
    renames: float = 0
    joins: float = 0
    leaves: float = 0


class World:
    """Chats by id, and an ordered list of chats per phone number.

    Operations replace a chat's dict and never mutate it, so earlier answers stay unchanged; callers
    must not mutate one either. An operation on an unknown or deleted chat raises KeyError.
    """

    def __init__(self, numbers: Sequence[str], *, order: Order = "recency", seed: int = 1) -> None:
        self.numbers = tuple(numbers)
        self.order = order
        self._rng = Random(seed)
        self._inventor = Inventor(self._rng)
        self._chats: dict[int, dict[str, Any]] = {}
        self._deleted: dict[int, dict[str, Any]] = {}
        self._owners: dict[int, tuple[str, ...]] = {}
        self._activity: dict[int, int] = {}
        self._clock = 0
        # Sorted (rank, id) pairs: bisection finds a chat, and a slice is a page.
        self._lists: dict[str, list[tuple[int, int]]] = {number: [] for number in numbers}
        self._owed: dict[tuple[str, ...], float] = {}

    def populate(self, owners: Sequence[tuple[str, ...]]) -> None:
        """Add a chat per tuple of numbers; the last five ids exceed 2**31, the last one 2**53."""
        count = len(owners)
        activities = self._rng.sample(range(count), count)
        for index, (numbers, activity) in enumerate(zip(owners, activities, strict=True), start=1):
            if index > count - 5:
                self._inventor.skip_ids_to(2**53 if index == count else 2**31)
            chat_id = self._enter(self._inventor.chat(numbers), numbers, activity=activity)
            for number in numbers:
                self._lists[number].append(self._entry(chat_id))
        self._clock = count
        for entries in self._lists.values():
            entries.sort()

    def page(self, number: str, page: int, per_page: int) -> dict[str, Any]:
        """The answer to List Chats; no data beyond the last page. Raises KeyError."""
        entries = self._lists[number]
        start = (page - 1) * per_page
        shown = entries[start : start + per_page]
        if self.order == "shuffled":
            # One page of a fresh random order is a random sample.
            shown = self._rng.sample(entries, len(shown))
        meta = {
            "page": page,
            "total_pages": -(-len(entries) // per_page),
            "total_count": len(entries),
            "per_page": per_page,
        }
        return {"data": [self._chats[chat_id] for _, chat_id in shown], "meta": meta}

    def chat(self, chat_id: int) -> dict[str, Any]:
        return self._chats[chat_id]

    def listing(self, number: str) -> tuple[int, ...]:
        """The ids that the number lists now, in order; ascending if the order is shuffled."""
        return tuple(chat_id for _, chat_id in self._lists[number])

    def owners(self, chat_id: int) -> tuple[str, ...]:
        """The account's numbers in the chat, including those that no longer list it."""
        return self._owners[chat_id]

    def phone_numbers(self) -> list[dict[str, Any]]:
        """The account's numbers as List Phone Numbers sends them."""
        return [
            {
                "id": 7 + index,
                "phone_number": number,
                "forwarding_number": None,
                "response_rate": 0.85,
            }
            for index, number in enumerate(self.numbers)
        ]

    def create(self, number: str) -> int:
        """Create a chat of this number with one message."""
        chat = self._inventor.chat((number,)) | {"message_count": 1}
        self._clock += 1
        chat_id = self._enter(chat, (number,), activity=self._clock)
        self._list(number, chat_id)
        return chat_id

    def delete(self, chat_id: int) -> int:
        """Remove the chat from every list and from Get Chat."""
        self._deleted[chat_id] = self._chats.pop(chat_id)
        for number in self._owners[chat_id]:
            self._unlist(number, chat_id)
        return chat_id

    def leave_list(self, number: str, chat_id: int) -> int:
        """Remove the chat from this number's list only; Get Chat still finds it."""
        if chat_id not in self._chats:
            raise KeyError(chat_id)
        self._unlist(number, chat_id)
        return chat_id

    def restore(self, chat_id: int) -> int:
        """Undo `delete` and every `leave_list`; the chat is listed at its present rank."""
        if chat_id in self._deleted:
            self._chats[chat_id] = self._deleted.pop(chat_id)
        for number in self._owners[chat_id]:
            self._unlist(number, chat_id)
            self._list(number, chat_id)
        return chat_id

    def jump(self, chat_id: int) -> int:
        """Receive a message: the count grows, and the chat heads every list ordered by recency."""
        count = self._chats[chat_id].get("message_count") or 0
        listing = [number for number in self._owners[chat_id] if self._unlist(number, chat_id)]
        self._clock += 1
        self._activity[chat_id] = self._clock
        for number in listing:
            self._list(number, chat_id)
        return self.edit(chat_id, message_count=count + 1)

    def edit(self, chat_id: int, **fields: Any) -> int:
        """Set any fields of the chat, including ones that the API does not have today."""
        self._chats[chat_id] = self._chats[chat_id] | fields
        return chat_id

    def rename(self, chat_id: int, name: str | None = None) -> int:
        """Give the chat this name, or an invented one that differs from the present one."""
        present = self._chats[chat_id].get("display_name")
        invented = iter(self._inventor.group_name, None)
        other = name or next(candidate for candidate in invented if candidate != present)
        return self.edit(chat_id, display_name=other)

    def change_service(self, chat_id: int, service: str | None = None) -> int:
        """Move the chat to this service, or to one that differs from the present one."""
        present = self._chats[chat_id].get("service")
        others = [known for known in SERVICES if known != present]
        return self.edit(chat_id, service=service or self._rng.choice(others))

    def join(self, chat_id: int, handle: dict[str, Any] | None = None) -> int:
        """Add this participant, or an invented one."""
        chat = self._chats[chat_id]
        joining = handle or self._inventor.handle(chat.get("service", SERVICES[0]))
        return self.edit(chat_id, chat_handles=[*chat.get("chat_handles", ()), joining])

    def leave(self, chat_id: int) -> int:
        """Remove one participant other than the account's numbers, if there is one."""
        handles = self._chats[chat_id].get("chat_handles", ())
        guests = [handle for handle in handles if handle.get("phone_number") not in self.numbers]
        if not guests:
            return chat_id
        leaving = self._rng.choice(guests)
        return self.edit(
            chat_id, chat_handles=[handle for handle in handles if handle is not leaving]
        )

    def reorder(self, order: Order) -> None:
        """Order every list in another way from now on."""
        self.order = order
        for number, entries in self._lists.items():
            self._lists[number] = sorted(self._entry(chat_id) for _, chat_id in entries)

    def move(self, motion: Motion, number: str) -> None:
        """Apply the changes that follow one List Chats request, to chats that this number lists."""
        changes: tuple[tuple[float, Callable[[int], int]], ...] = (
            (motion.jumps, self.jump),
            (motion.deletes, self.delete),
            (motion.renames, self.rename),
            (motion.joins, self.join),
            (motion.leaves, self.leave),
        )
        for _ in range(self._due(motion.creates, number, "create")):
            self.create(number)
        for rate, change in changes:
            for _ in range(self._due(rate, number, change.__name__)):
                if entries := self._lists[number]:
                    change(self._rng.choice(entries)[1])

    def _due(self, rate: float, *key: str) -> int:
        """How many changes are due now; the fraction left counts towards the next call."""
        owed = self._owed.get(key, 0.0) + rate
        # In floating point, ten times 0.1 is slightly below 1.
        due = int(owed + 1e-9)
        self._owed[key] = owed - due
        return due

    def _enter(self, chat: dict[str, Any], owners: tuple[str, ...], *, activity: int) -> int:
        chat_id = int(chat["id"])
        self._chats[chat_id] = chat
        self._owners[chat_id] = owners
        self._activity[chat_id] = activity
        return chat_id

    def _entry(self, chat_id: int) -> tuple[int, int]:
        if self.order == "recency":
            return -self._activity[chat_id], chat_id
        return (-chat_id if self.order == "id-desc" else chat_id), chat_id

    def _list(self, number: str, chat_id: int) -> None:
        entries, entry = self._lists[number], self._entry(chat_id)
        entries.insert(bisect_left(entries, entry), entry)

    def _unlist(self, number: str, chat_id: int) -> bool:
        """Remove the chat from the list; False if it was not listed."""
        entries, entry = self._lists[number], self._entry(chat_id)
        at = bisect_left(entries, entry)
        listed = entries[at : at + 1] == [entry]
        if listed:
            del entries[at]
        return listed


def build_world(
    *,
    seed: int = 1,
    numbers: Sequence[str] = ("+13343284472", "+13125550100"),
    chats_per_number: int = 120,
    order: Order = "recency",
) -> World:
    """An account with this many chats per number; pairs of numbers share a tenth of theirs."""
    pairs = list(zip(numbers[::2], numbers[1::2], strict=False))
    shared = round(chats_per_number / 10)
    owners: list[tuple[str, ...]] = [pair for pair in pairs for _ in range(shared)]
    for index, number in enumerate(numbers):
        alone = chats_per_number - (shared if index < 2 * len(pairs) else 0)
        owners += [(number,)] * alone
    Random(seed).shuffle(owners)
    world = World(numbers, order=order, seed=seed)
    world.populate(owners)
    return world
