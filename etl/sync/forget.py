"""Erase one person everywhere, and keep every later sync from storing them again."""

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, Final

from sqlalchemy import Column, Connection

from etl.api.privacy import Privacy, lists_people, normalised
from etl.config import Config
from etl.db import erase
from etl.db.backends import Row
from etl.db.chunks import chunks
from etl.db.engine import clock_of
from etl.db.erase import Changes, Erasure
from etl.db.privacy import agreed_state
from etl.db.store.diff import HandleRow, StoredChat
from etl.db.tables import chat_events, chat_handles, chats, rejected_records
from etl.db.transactions import Transactions
from etl.errors import ConfigError
from etl.sync.privacy import read_privacy

Values = tuple[str | None, str | None]

_GAP: Final = r"[\s().-]{0,3}"  # between two digits of a number that is written in groups


@dataclass(frozen=True, slots=True)
class Forgotten:
    """The rows that were deleted and changed, by table."""

    deleted: dict[str, int]
    changed: dict[str, int]


class Person:
    """A participant, and where it stands in what is stored.

    Of a text, `needle` is a part that it holds in lower case wherever the participant stands in it.
    """

    def __init__(self, privacy: Privacy, participant: str) -> None:
        self._own_numbers = privacy.own_numbers
        self._is_hashed = privacy.participants == "hashed"
        self._stored = privacy.hash_of(participant) if self._is_hashed else normalised(participant)
        self._pattern = re.compile(_pattern(self._stored), re.IGNORECASE)
        is_number = self._stored.startswith("+")
        # Two digits: how a number is grouped is not known.
        words = re.findall(r"[a-z0-9]+", self._stored)
        self.needle = self._stored[-2:] if is_number else max(words, key=len, default="")

    def is_participant(self, value: str | None) -> bool:
        if value is None:
            return False
        return (value if self._is_hashed else normalised(value)) == self._stored

    def is_in(self, *texts: str | None) -> bool:
        """Whether the participant stands in one of the texts."""
        return any(text is not None and self._pattern.search(text) for text in texts)

    def erasure_of(self, stored: StoredChat) -> Erasure:
        """What of the chat is the person's; as Privacy leaves it out of the API's answers."""
        handles = stored.handles.values()
        theirs = {each.id for each in handles if self.is_participant(each.phone_number)}
        name = stored.row.display_name
        is_named, is_direct = self.is_in(name), stored.row.is_group is not True
        if is_direct and (theirs or is_named):
            if not self._people(each for each in handles if each.id not in theirs):
                return Erasure(everything=True)
            is_named = True
        present = [each for each in handles if each.removed_at is None]
        if name and any(each.id in theirs for each in present):
            is_named |= lists_people(name, len(self._people(present)))
        return Erasure(
            name=is_named and name is not None,
            extra=self.is_in(stored.row.extra),
            handles=tuple(theirs),
            extras=tuple(each.id for each in handles if self.is_in(each.extra)),
        )

    def _people(self, handles: Iterable[HandleRow]) -> set[str]:
        numbers = {normalised(each.phone_number) for each in handles if each.phone_number}
        return numbers - self._own_numbers

    def rest_of_event(self, event: Row) -> Values | None:
        """What is left of an event's values; None if the event is about the person."""
        _, kind, old, new = event
        if kind in {"joined", "left"}:
            return None
        return None if self.is_in(old) else old, None if self.is_in(new) else new

    def rest_of_names(self, renaming: Row) -> Values:
        """What is left of the names of a chat that the person was in."""
        _, old, new, is_group = renaming

        def rest(name: str | None) -> str | None:
            lists = name is not None and (not is_group or lists_people(name, 2))
            return None if lists or self.is_in(name) else name

        return rest(old), rest(new)


def _pattern(participant: str) -> str:
    """Matches a number however it is grouped, or an address or a hash as it is."""
    if not participant.startswith("+"):
        return rf"(?<![\w.+-]){re.escape(participant)}(?![\w-]|\.\w)"
    digits = participant[1:]
    country, national = ("1", digits[1:]) if digits.startswith("1") else ("", digits)
    prefix = rf"(?:{country}{_GAP})?" if country else ""
    return rf"(?<!\d){prefix}{_GAP.join(national)}(?!\d)"


async def forget(config: Config, transactions: Transactions, participant: str) -> Forgotten:
    """Erase the participant, a phone number in E.164 or an e-mail address.

    First every sync, also one in progress, is kept from storing them; then their rows go, a few at
    a time. Broken off anywhere, it can be run again. Raises ConfigError for one of our own numbers.
    """
    privacy = await transactions.read(partial(read_privacy, config=config))
    if normalised(participant) in privacy.own_numbers:
        raise ConfigError("That is one of the configured numbers, which cannot be forgotten.")
    now = (await transactions.read(clock_of))()

    def remember(connection: Connection) -> None:
        state = agreed_state(connection, privacy.participants, privacy.fingerprint)
        state = state._replace(key_fingerprint=privacy.fingerprint)
        erase.remember_forgotten(connection, state, privacy.mark_of(participant), now)

    await transactions.write(remember)
    changes: Changes = Counter()
    if privacy.participants != "dropped":
        changes = await _Erasing(transactions, Person(privacy, participant)).run(now)
    return Forgotten(
        **{
            verb: {
                table: rows
                for (each, table), rows in sorted(changes.items())
                if rows and each == verb
            }
            for verb in ("deleted", "changed")
        }
    )


class _Erasing:
    """Erases a person's rows, and counts them."""

    def __init__(self, transactions: Transactions, person: Person) -> None:
        self._transactions = transactions
        self._person = person
        self._changes: Changes = Counter()

    async def run(self, now: datetime) -> Changes:
        """Chats and participants first: a run in progress may still note that the person left."""
        person, events = self._person, chat_events.c
        handles = await self._find(
            (chat_handles.c.chat_id,),
            (chat_handles.c.phone_number, chat_handles.c.extra),
            lambda row: person.is_participant(row[1]) or person.is_in(row[2]),
        )
        named = await self._find(
            (chats.c.id,), (chats.c.display_name, chats.c.extra), lambda row: person.is_in(*row[1:])
        )
        chat_ids = sorted({row[0] for row in (*handles, *named)})
        erasure_of = person.erasure_of
        await self._write(chat_ids, partial(erase.erase_chats, erasure_of=erasure_of, now=now))
        theirs = await self._find(
            (events.id, events.kind),
            (events.old_value, events.new_value),
            lambda row: any(map(person.is_participant, row[2:])) or person.is_in(*row[2:]),
        )
        rest = {row[0]: person.rest_of_event(row) for row in theirs}
        for ids in chunks(sorted({row[0] for row in handles}), erase.CHUNK):
            renamings = await self._transactions.read(partial(erase.renamings, chat_ids=ids))
            for row in renamings:
                if (values := person.rest_of_names(row)) != (row[1], row[2]):
                    rest[row[0]] = values
        await self._write(sorted(rest.items()), lambda c, some: erase.erase_events(c, dict(some)))
        records = await self._find(
            (rejected_records.c.id,),
            (rejected_records.c.payload,),
            lambda row: person.is_in(row[1]),
        )
        await self._write([row[0] for row in records], erase.erase_rejected)
        return self._changes

    async def _find(
        self,
        keys: Collection[Column[Any]],
        texts: Collection[Column[Any]],
        is_theirs: Callable[[Row], bool],
    ) -> erase.Found:
        needle = self._person.needle
        return await self._transactions.read(
            lambda c: erase.find(c, keys, texts, needle, is_theirs)
        )

    async def _write(
        self, items: Iterable[Any], function: Callable[[Connection, list[Any]], Changes]
    ) -> None:
        for some in chunks(items, erase.CHUNK):
            self._changes += await self._transactions.write(partial(_call, function, some))


def _call(
    function: Callable[[Connection, list[Any]], Changes], items: list[Any], connection: Connection
) -> Changes:
    return function(connection, items)
