"""The latest observation of each chat in a batch of pages; new, changed, or the same by digest."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Literal, NamedTuple

from msgspec import Struct, structs
from sqlalchemy import Connection, case, select

from etl.api.models import Chat, Page
from etl.db.backends import backend
from etl.db.tables import chats

Part = Literal["walk", "rule", "audit", "gain"]


class Place(NamedTuple):
    """Where a chat was read: in a walk of the list, by the rule of quick readings, by an audit, or
    on a page that was worth most.

    Page 0 is an answer to Get Chat.
    """

    part: Part
    page_number: int


class Observation(Struct, frozen=True, gc=False):
    """A chat as the API returned it; `counted_for` is the number whose counts it adds to."""

    chat: Chat
    digest: int
    counted_for: str
    observed_at: datetime
    place: Place = Place("walk", 0)


@dataclass(frozen=True)
class ObservedPage:
    """A page of a number's list.

    Unless `listed`, its chats were asked for one by one, which does not put them in the list.
    """

    phone_number: str
    page: Page
    listed: bool = True
    part: Part = "walk"

    @cached_property
    def observations(self) -> list[Observation]:
        """The page's chats, each with its digest."""
        place = Place(self.part, self.page.page_number)
        return [
            Observation(chat, chat.digest, self.phone_number, self.page.observed_at, place)
            for chat in self.page.chats
        ]


class Delta(NamedTuple):
    """The observations of chats without a row, and of chats whose row has another digest."""

    new: list[Observation]
    changed: list[Observation]


def latest_observations(pages: Iterable[ObservedPage]) -> dict[int, Observation]:
    """The last observation of each chat, counted for the number and place that had it first.

    Ordered by id, which touches the fewest pages of the tables' B-trees.
    """
    found: dict[int, Observation] = {}
    for page in sorted(pages, key=lambda page: page.page.observed_at):
        for observation in page.observations:
            before = found.get(observation.chat.id)
            if before:
                observation = _counted_as(before, observation)  # noqa: PLW2901
            found[observation.chat.id] = observation
    return dict(sorted(found.items()))


def _counted_as(before: Observation, observation: Observation) -> Observation:
    """The observation, which adds to the counts of the one before."""
    is_other_number = before.counted_for != observation.counted_for
    if is_other_number or before.digest == observation.digest:
        first = {"counted_for": before.counted_for, "place": before.place}
        return structs.replace(observation, **first)
    return observation


def split_new_and_changed(connection: Connection, observations: Mapping[int, Observation]) -> Delta:
    """Drop the chats whose stored digest is the observed one; a removed chat has none."""
    database = backend(connection.dialect)
    given = database.id_table(observations)
    digest = case((chats.c.removed_at.is_(None), chats.c.digest))
    # An outer join, so that the ids drive it and each chat is found by its key.
    rows = select(chats.c.id, digest).select_from(given.outerjoin(chats, chats.c.id == given.c.id))
    stored: dict[int, int | None] = dict(database.fetch_rows(connection, rows))
    return Delta(
        new=[each for chat_id, each in observations.items() if chat_id not in stored],
        changed=[
            each
            for chat_id, each in observations.items()
            if chat_id in stored and stored[chat_id] != each.digest
        ],
    )
