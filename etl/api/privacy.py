"""What is stored of people: each answer passes here before its digests are taken.

Everything behind the client sees participants only as they are to be stored: as the API sends
them, as keyed hashes, or not at all; and nobody who was forgotten. Our own numbers stay plain.
"""

import hmac
import re
import secrets
from collections.abc import Callable, Collection, Iterable
from functools import lru_cache
from hashlib import blake2b
from typing import Final

from msgspec import UnsetType, structs

from etl.api.models import Chat, Handle, Page, Rejected, Withheld
from etl.api.redact import redacted, with_hashed_texts
from etl.config import Participants, PrivacyKey
from etl.phone import e164_or_none

_REMEMBERED: Final = 1 << 14  # participants whose hash is kept in memory
_MAX_CANDIDATES: Final = 1000  # in one text; one with more counts as naming everybody
_US_NUMBER: Final = re.compile(r"\+1[2-9]\d{9}")  # E.164 already: parsing takes 100 times as long
_HASH: Final = re.compile(r"[0-9a-f]{64}")
# Five digits or more, however they are grouped, and an e-mail address.
_NUMBER_LIKE: Final = re.compile(r"\+?\(?\d(?:[\s().-]{0,3}\d){4,}")
_ADDRESS_LIKE: Final = re.compile(r"[^\s@,;:<>\"'()\[\]{}]+@[^\s@,;:<>\"'()\[\]{}]+")


def normalised(participant: str) -> str:
    """One text for each way to write a participant: E.164, or without case and outer spaces."""
    if _US_NUMBER.fullmatch(participant):
        return participant
    return e164_or_none(participant) or participant.strip().casefold()


def has_participants(text: str) -> bool:
    """Whether a phone number or an e-mail address stands anywhere in the text."""
    return "@" in text or bool(_NUMBER_LIKE.search(text))


def parts_of(name: str) -> set[str]:
    """A chat's name, and its parts between commas."""
    return {part for each in (name, *name.split(",")) if (part := each.strip())}


def lists_people(name: str, people: int) -> bool:
    """Whether the name of a group of so many people may consist of theirs."""
    return name.count(",") + 1 >= max(people, 2)


class Privacy:
    """How participants are stored. Without a key, none is hashed and nobody can be forgotten.

    `own_numbers` are in E.164. `forgotten` holds the marks of the forgotten people, as of the
    database's `generation`.
    """

    def __init__(
        self,
        participants: Participants = "plain",
        key: PrivacyKey | None = None,
        own_numbers: Collection[str] = (),
    ) -> None:
        self.participants: Participants = participants
        self.own_numbers = frozenset(own_numbers)
        self.forgotten: frozenset[str] = frozenset()
        self.generation = 0
        self.is_outdated = False  # pages may have been read before somebody was forgotten
        self._hmac = hmac.new(key.value, digestmod="sha256") if key else None
        self._salt = secrets.token_bytes(16)
        self._stored = lru_cache(_REMEMBERED)(self._store)
        self._mark = lru_cache(_REMEMBERED)(self.mark_of)

    def page(self, page: Page) -> Page:
        """The page as it is to be stored."""
        page = self.without_forgotten(page)
        if self.participants == "plain":
            return page
        is_hashed = self.participants == "hashed"
        contacts = filter(None, map(self._contact, page.chats)) if is_hashed else ()
        return structs.replace(
            page,
            chats=tuple(map(self._chat, page.chats)),
            rejected=tuple(map(self._redacted, page.rejected)),
            contacts=tuple(contacts),
        )

    def answer(self, record: Chat | Rejected) -> Chat | Rejected | Withheld:
        """A record that was asked for by its id, as it is to be stored."""
        is_plain = self.participants == "plain"
        if isinstance(record, Rejected):
            spared = self._spared_record(record)
            return spared if is_plain else self._redacted(spared)
        chat = self._spared(record) if self.forgotten else record
        if chat is None:
            return Withheld(record.id)
        return chat if is_plain else self._chat(chat)

    def without_forgotten(self, page: Page) -> Page:
        """The page without people who were forgotten; the same page if it names none.

        Takes a page before or after its participants were hashed.
        """
        if not self.forgotten:
            return page
        spared = {chat.id: self._spared(chat) for chat in page.chats}
        chats = tuple(chat for chat in spared.values() if chat)
        rejected = tuple(map(self._spared_record, page.rejected))
        if chats == page.chats and rejected == page.rejected:
            return page
        withheld = {chat_id for chat_id, chat in spared.items() if chat is None}
        return structs.replace(
            page,
            chats=chats,
            rejected=rejected,
            withheld=(*page.withheld, *withheld),
            contacts=tuple(each for each in page.contacts if each[0] not in withheld),
        )

    # Keyed hashes

    @property
    def fingerprint(self) -> str | None:
        """Tells one key from another, but not what the key is."""
        return self._keyed("linq-etl privacy key\n")[:32] if self._hmac else None

    def hash_of(self, participant: str) -> str:
        """The same for each way to write the participant."""
        return self._keyed(normalised(participant))

    def mark_of(self, participant: str) -> str:
        """What is kept of someone who was forgotten; also of a participant that is hashed."""
        is_hash = self.participants == "hashed" and _HASH.fullmatch(participant)
        return self._keyed(f"forgotten\n{participant if is_hash else self.hash_of(participant)}")

    @property
    def hashes_of_names(self) -> Callable[[str], set[int]] | None:
        """What hashes the names of groups; None unless participants are hashed."""
        return self.name_hashes if self.participants == "hashed" else None

    def name_hashes(self, name: str) -> set[int]:
        """Hashes of a group's name and of each part of it."""
        return {self.name_hash(part) for part in parts_of(name)}

    def name_hash(self, name: str) -> int:
        """A signed 64-bit hash of a name."""
        text = self._keyed(f"name\n{name.strip().casefold()}")
        return int.from_bytes(bytes.fromhex(text[:16]), signed=True)

    def _keyed(self, text: str) -> str:
        assert self._hmac  # noqa: S101  # the configuration and the database ask for it
        keyed = self._hmac.copy()
        keyed.update(text.encode())
        return keyed.hexdigest()

    # As they are stored

    def _store(self, participant: str) -> str | None:
        if normalised(participant) in self.own_numbers:
            return participant
        return self.hash_of(participant) if self.participants == "hashed" else None

    def _chat(self, chat: Chat) -> Chat:
        return Chat(
            chat.id,
            self._name(chat),
            chat.service,
            chat.is_group,
            chat.message_count,
            self._extra(chat.extra),
            chat.handles and tuple(map(self._handle, chat.handles)),
        )

    def _handle(self, handle: Handle) -> Handle:
        participant = handle.phone_number
        if isinstance(participant, str):
            participant = self._stored(participant)
        extra = self._extra(handle.extra)
        return Handle(handle.id, participant, handle.service, handle.joined_at, extra)

    def _name(self, chat: Chat) -> str | UnsetType | None:
        """A group's own name, as far as the chat itself tells that it is one."""
        name = chat.display_name
        if not isinstance(name, str):
            return name
        if self.participants == "dropped" or chat.is_group is not True or has_participants(name):
            return None
        people = participants_of(chat.handles or ())
        return None if people & {*map(normalised, parts_of(name))} else name

    def _extra(self, extra: str | None) -> str | None:
        if extra is None or self.participants == "dropped":
            return None
        return with_hashed_texts(extra, self._store)

    def _contact(self, chat: Chat) -> tuple[int, int] | None:
        """A one-to-one chat's id and the hash of its name; a number may be in no name anyway."""
        name = chat.display_name
        if chat.is_group is True or not isinstance(name, str) or not name.strip():
            return None
        is_direct = len(self._others(chat.handles or ())) <= 1
        return (chat.id, self.name_hash(name)) if is_direct and not has_participants(name) else None

    def _redacted(self, record: Rejected) -> Rejected:
        """Without texts. A hash of the whole record could be guessed, so it is salted."""
        whole = record.digest.to_bytes(8, signed=True)
        salted = blake2b(whole, digest_size=8, key=self._salt).digest()
        digest = int.from_bytes(salted, signed=True)
        return Rejected(record.id, record.reason, redacted(record.payload), digest)

    # Without those who were forgotten

    def _spared(self, chat: Chat) -> Chat | None:
        """The chat without them; None if it was a chat with one of them alone."""
        handles = chat.handles or ()
        present = tuple(each for each in handles if not self._is_forgotten(each.phone_number))
        was_in = len(present) < len(handles)
        name = chat.display_name if isinstance(chat.display_name, str) else ""
        is_named = self._names_forgotten(name)
        is_direct = chat.is_group is not True
        if is_direct and (was_in or is_named) and not self._others(present):
            return None
        if was_in and (is_direct or lists_people(name, len(self._others(handles)))):
            is_named = True
        changes: dict[str, object] = {}
        if is_named and name:
            changes["display_name"] = None
        if chat.extra and self._names_forgotten(chat.extra):
            changes["extra"] = None
        spared = tuple(map(self._without_extra, present))
        if spared != handles:
            changes["handles"] = spared
        return structs.replace(chat, **changes) if changes else chat

    def _without_extra(self, handle: Handle) -> Handle:
        if handle.extra and self._names_forgotten(handle.extra):
            return structs.replace(handle, extra=None)
        return handle

    def _spared_record(self, record: Rejected) -> Rejected:
        is_plain = self.participants == "plain"
        return (
            self._redacted(record) if is_plain and self._names_forgotten(record.payload) else record
        )

    def _others(self, handles: Iterable[Handle]) -> set[str]:
        """The different participants, without our own numbers."""
        return participants_of(handles) - self.own_numbers

    def _is_forgotten(self, participant: str | UnsetType | None) -> bool:
        return isinstance(participant, str) and self._mark(participant) in self.forgotten

    def _names_forgotten(self, text: str) -> bool:
        """Whether one of them stands in the text, in any form of a number or an address."""
        found = candidates(text) if has_participants(text) else set()
        if self.participants == "hashed":
            found |= {*_HASH.findall(text)}
        if not self.forgotten or len(found) > _MAX_CANDIDATES:
            return bool(self.forgotten)
        return any(map(self._is_forgotten, found))


def participants_of(handles: Iterable[Handle]) -> set[str]:
    """The different participants of these, normalised."""
    numbers = [each.phone_number for each in handles]
    return {normalised(each) for each in numbers if isinstance(each, str)}


def candidates(text: str) -> set[str]:
    """What may be a participant in a text: its parts, and whatever looks like one."""
    numbers = _NUMBER_LIKE.findall(text)
    pieces = [piece for number in numbers for piece in number.split()]
    return {*parts_of(text), *numbers, *pieces, *_ADDRESS_LIKE.findall(text)}
