"""What is left of people in an answer: one hash for all forms, and nothing of who was forgotten."""

import json
from typing import Any

import pytest

from etl.api.models import Chat, Rejected, Withheld
from etl.api.privacy import Privacy, candidates, has_participants, normalised
from etl.config import PrivacyKey
from tests.support.builders import A, chat, handle, observed_page

KEY = PrivacyKey(b"f3c1a97be2054d68" * 2)
PERSON = "+13125550142"


def forgetting(*people: str, mode: Any = "plain") -> Privacy:
    privacy = Privacy(mode, KEY, [A])
    privacy.forgotten = frozenset(map(privacy.mark_of, people))
    return privacy


@pytest.mark.parametrize(
    ("forms", "normal"),
    [
        ((PERSON, "13125550142", "(312) 555-0142", "+1 312.555.0142", " 3125550142"), PERSON),
        (("+442079460000", "+44 20 7946 0000", "+44 (0)20 7946 0000"), "+442079460000"),
        (("Ava@Example.com", " ava@example.com\n", "AVA@EXAMPLE.COM"), "ava@example.com"),
        (("STRASSE@example.com", "straße@example.com"), "strasse@example.com"),
        (("22395",), "22395"),
        (("VZWMSG",), "vzwmsg"),
    ],
)
def test_one_form_for_each_person(forms: tuple[str, ...], normal: str) -> None:
    """A number in E.164, anything else without case and outer white space."""
    assert {normalised(form) for form in forms} == {normal}
    assert {Privacy("hashed", KEY).hash_of(form) for form in forms} == {
        Privacy("hashed", KEY).hash_of(normal)
    }


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Call (312) 555-0142 now", "+13125550142"),
        ("13125550142 13125550143", "+13125550143"),
        ('{"by":13125550142}', "+13125550142"),
        ("Ben <ava@example.com>, Zoe", "ava@example.com"),
        ("22395", "22395"),
    ],
)
def test_participants_in_a_text(text: str, found: str) -> None:
    """Wherever a number of five digits or an address stands."""
    assert has_participants(text)
    assert found in map(normalised, candidates(text))


@pytest.mark.parametrize("text", ["Night shift", "Class of 2024", "Lunch, then bowling", "4/5/24"])
def test_texts_without_participants(text: str) -> None:
    assert not has_participants(text)


@pytest.mark.parametrize("mode", ["plain", "hashed", "dropped"])
def test_a_chat_with_a_forgotten_person_alone(mode: Any) -> None:
    """It is withheld and counts as seen, also where only its name tells; a group goes on."""
    ours, theirs = handle(1, phone_number=A), handle(2, phone_number="(312) 555-0142")
    page = observed_page(
        chat(1, chat_handles=[ours, theirs]),
        chat(2, chat_handles=[ours], display_name="312-555-0142"),
        chat(3, chat_handles=[ours, handle(3)]),
        chat(4, chat_handles=[ours, theirs], group=True, display_name="Team"),
    ).page
    privacy = forgetting(PERSON, mode=mode)
    kept = privacy.page(page)
    assert (sorted(kept.ids), kept.withheld) == ([1, 2, 3, 4], (1, 2))
    assert [[each.id for each in chat.handles or ()] for chat in kept.chats] == [[1, 3], [1]]
    assert privacy.page(kept).withheld == (1, 2)
    assert isinstance(privacy.answer(page.chats[0]), Withheld)
    assert isinstance(privacy.answer(page.chats[2]), Chat)


def test_a_page_that_was_hashed_before() -> None:
    """Somebody is forgotten while the page waits for its transaction."""
    privacy = Privacy("hashed", KEY, [A])
    page = observed_page(
        chat(1, chat_handles=[handle(2, phone_number=PERSON)], display_name="Zoe"),
        chat(2, chat_handles=[handle(3)], owner=PERSON, display_name="Ben"),
    ).page
    waiting = privacy.page(page)
    privacy.forgotten = frozenset([privacy.mark_of(PERSON)])
    kept = privacy.without_forgotten(waiting)
    assert (kept.withheld, [each.extra for each in kept.chats]) == ((1,), [None])
    assert [chat_id for chat_id, _ in kept.contacts] == [2]


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("Night shift", "Night shift"),
        ("Lunch, then bowling", None),  # two parts, as many as people
        ("Call 312 555 0142", None),
        (None, None),
    ],
)
def test_the_name_of_a_group(name: str | None, kept: str | None) -> None:
    """It goes if it may consist of the names of the people in it."""
    people = [handle(2, phone_number=PERSON), handle(3)]
    page = observed_page(chat(1, chat_handles=people, group=True, display_name=name)).page
    (found,) = forgetting(PERSON).page(page).chats
    assert found.display_name == kept


def test_a_rejected_record() -> None:
    """Where it names a forgotten person, its shape is left; the digest is of no use elsewhere."""
    record = chat(1, message_count="many", chat_handles=[handle(2, phone_number=PERSON)])
    other = chat(2, message_count="many")
    page = observed_page(record, other).page
    first, second = forgetting(PERSON).page(page).rejected
    assert second == page.rejected[1]
    assert (first.id, first.reason) == (1, page.rejected[0].reason)
    assert json.loads(first.payload) == {
        "id": 1,
        "display_name": "text",
        "service": "text",
        "group": False,
        "message_count": "text",
        "chat_handles": [{"id": 2, "phone_number": "text", "service": "text", "joined_at": "text"}],
    }
    digests = {forgetting(PERSON).page(page).rejected[0].digest for _ in range(3)}
    assert len(digests | {page.rejected[0].digest}) == 4
    assert isinstance(forgetting(PERSON).answer(page.rejected[0]), Rejected)
