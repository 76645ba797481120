"""Invented chats and people, true to life; the same seed gives the same ones."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from random import Random
from typing import Any, NamedTuple

SERVICES = ("iMessage", "SMS", "RCS")

_FIRST = ("Ava", "Noah", "Zoë", "José", "Mia", "Łukasz", "Priya", "Omar", "Grace", "Ngọc", "美咲")
_LAST = ("Reyes", "Okafor", "Núñez", "Park", "O'Neil", "Schmidt", "de la Cruz", "Haddad", "Kim")
_FLOURISH = (*[""] * 12, " 🌻", " (work)", " 🐝🐝", " ❤️")
_MAILBOX = ("ava", "sam.reyes", "Kim.Park", "front-desk", "o_haddad", "leo+texts")
_GROUP = (
    "Soccer parents ⚽",
    "👨‍👩‍👧‍👦 Family",
    "Night shift",
    "Lunch, then bowling",
    "Café crew",
    "🎉",
)
_OFFSETS = ("-05:00", "-06:00", "-07:00", "+00:00", "Z", "+05:30")


class Person(NamedTuple):
    """A participant; without a saved contact, the name is the address."""

    handle_id: int
    name: str
    address: str


class Inventor:
    """Draws chats and participants from one random generator, with increasing ids."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._last_chat_id = 44
        self._last_handle_id = 122
        self._regulars: list[Person] = []

    def skip_ids_to(self, floor: int) -> None:
        """Continue the ids of chats and handles after `floor`, if that is ahead."""
        self._last_chat_id = max(self._last_chat_id, floor)
        self._last_handle_id = max(self._last_handle_id, floor)

    def chat(self, numbers: Sequence[str]) -> dict[str, Any]:
        """A chat between these account numbers and others, as the API sends it."""
        guests = [self._guest() for _ in range(self._guest_count(numbers))]
        # A regular drawn twice is still one participant.
        people = dict.fromkeys([*map(self._person, numbers), *guests])
        service = self._rng.choices(SERVICES, weights=(60, 30, 10))[0]
        chat = {
            "id": self._last_chat_id + 1,
            "display_name": self._display_name(guests),
            "service": service,
            "group": len(people) > 2,
            "message_count": 1 + int(self._rng.lognormvariate(3, 2)),
            "chat_handles": [self._handle(person, service) for person in people],
        }
        self._last_chat_id += self._rng.randint(1, 9)
        return self._with_gaps(chat)

    def handle(self, service: str) -> dict[str, Any]:
        """Another participant, as the API sends one."""
        return self._handle(self._guest(), service)

    def group_name(self) -> str:
        return self._rng.choice(_GROUP) + self._rng.choice(_FLOURISH)

    def _guest(self) -> Person:
        """Mostly a new person; sometimes one of a few regulars, who are in several chats."""
        if self._regulars and self._rng.random() < 0.05:
            return self._rng.choice(self._regulars)
        person = self._person(self._address())
        if len(self._regulars) < 40:
            self._regulars.append(person)
        return person

    def _person(self, address: str) -> Person:
        handle_id = self._last_handle_id + 1
        self._last_handle_id += self._rng.randint(1, 9)
        if self._rng.random() < 0.2:
            return Person(handle_id, address, address)
        name = f"{self._rng.choice(_FIRST)} {self._rng.choice(_LAST)}{self._rng.choice(_FLOURISH)}"
        return Person(handle_id, name, address)

    def _address(self) -> str:
        if self._rng.random() < 0.06:
            domain = self._rng.choice(("example.com", "example.org"))
            return f"{self._rng.choice(_MAILBOX)}{self._rng.randint(1, 99)}@{domain}"
        return f"+1312555{self._rng.randint(1000, 9999)}"

    def _guest_count(self, numbers: Sequence[str]) -> int:
        roll = self._rng.random()
        if roll < 0.01:
            return 40
        return self._rng.randint(2, 6) if len(numbers) > 1 or roll < 0.2 else 1

    def _display_name(self, guests: Sequence[Person]) -> str | None:
        roll = self._rng.random()
        if roll < 0.02:
            return None
        if 1 < len(guests) < 40 and roll < 0.5:
            return self.group_name()
        return ", ".join(guest.name for guest in guests)

    def _handle(self, person: Person, service: str) -> dict[str, Any]:
        handle = {"id": person.handle_id, "phone_number": person.address, "service": service}
        roll = self._rng.random()
        if roll < 0.02:
            return handle
        return handle | {"joined_at": None if roll < 0.04 else self._joined_at()}

    def _joined_at(self) -> str:
        at = datetime(2021, 3, 1) + timedelta(seconds=self._rng.random() * 4 * 365 * 86_400)  # noqa: DTZ001  # the offset is added below
        timespec = self._rng.choice(("seconds", "milliseconds", "microseconds"))
        return at.isoformat(timespec=timespec) + self._rng.choice(_OFFSETS)

    def _with_gaps(self, chat: dict[str, Any]) -> dict[str, Any]:
        """Leave out a field now and then: the API promises none but the ids."""
        if self._rng.random() < 0.01:
            del chat["chat_handles"][-1][self._rng.choice(("phone_number", "service"))]
        if self._rng.random() < 0.03:
            del chat[self._rng.choice(list(chat)[1:])]
        return chat
