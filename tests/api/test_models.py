"""Models: the digest of a chat, the ids of a page, sums of usage."""

import pytest

from etl.api.models import ApiUsage
from tests.support.decoding import only_chat, read_page, tolerated


@pytest.mark.parametrize(
    "spelled",
    [
        '{"display_name":"Zo\\u00eb","id":1,"chat_handles":[{"joined_at":"2025-01-01T00:00Z","id":2}]}',
        '{ "id": 1, "chat_handles": [{"id": 2, "joined_at": "2024-12-31T19:00:00-05:00"}],'
        ' "display_name": "Zoë"}',
    ],
)
def test_the_digest_is_of_the_content(spelled: str) -> None:
    """Field order, white space, escapes and time offsets do not change the digest."""
    handles = '[{"id":2,"joined_at":"2025-01-01T00:00:00Z"}]'
    first = only_chat(f'{{"id":1,"display_name":"Zoë","chat_handles":{handles}}}')

    assert only_chat(spelled).digest == first.digest


@pytest.mark.parametrize(
    "joined_at",
    [
        "2025-05-21T15:30:00.123-05:00",
        "2025-05-21T20:30:00.123Z",
        "2025-05-21t20:30:00.123000z",
        "2025-05-22 02:00:00.123+05:30",
        "2025-05-21T20:30:00.123",
        "2025-05-21T20:30:00.123000999Z",
        "2025-05-21T203000.123Z",
        "2025-05-21T20:30:00,123Z",
        "2025-05-21T20:30:01.123+00:00:01",
    ],
)
@pytest.mark.parametrize("spell", [str, tolerated], ids=["plain", "tolerated"])
def test_the_digest_is_of_the_instant(joined_at: str, spell: type[str]) -> None:
    """However a time is written and decoded, so that no offset causes a comparison."""
    handles = '[{{"id":2,"joined_at":"{}"}}]'
    first = only_chat(f'{{"id":1,"chat_handles":{handles.format("2025-05-21T20:30:00.123Z")}}}')

    again = only_chat(spell(f'{{"id":1,"chat_handles":{handles.format(joined_at)}}}'))
    assert (again, again.digest) == (first, first.digest)


def test_any_difference_changes_the_digest() -> None:
    """Every field of the chat and of its participants counts; missing differs from null."""
    variants = [
        '{"id":1}',
        '{"id":2}',
        '{"id":1,"display_name":null}',
        '{"id":1,"display_name":"a"}',
        '{"id":1,"service":"a"}',
        '{"id":1,"group":false}',
        '{"id":1,"message_count":0}',
        '{"id":1,"mood":"a"}',
        '{"id":1,"chat_handles":[]}',
        '{"id":1,"chat_handles":[{"id":1}]}',
        '{"id":1,"chat_handles":[{"id":1,"phone_number":"a"}]}',
        '{"id":1,"chat_handles":[{"id":1,"service":"a"}]}',
        '{"id":1,"chat_handles":[{"id":1,"joined_at":null}]}',
        '{"id":1,"chat_handles":[{"id":1,"joined_at":"2025-01-01"}]}',
        '{"id":1,"chat_handles":[{"id":1,"mood":"a"}]}',
        '{"id":1,"chat_handles":[{"id":1},{"id":2}]}',
        '{"id":1,"chat_handles":[{"id":2},{"id":1}]}',
    ]

    assert len({only_chat(each).digest for each in variants}) == len(variants)


def test_digests_stay_the_same() -> None:
    """Digests are stored: if they change, the next sync compares every chat once."""
    item = '{"id":1,"display_name":"Ada","chat_handles":[{"id":2,"joined_at":"2025-01-01"}],"x":1}'

    assert only_chat(item).digest == -7988846890311189216


def test_each_record_of_a_page_has_an_id() -> None:
    """Chats come first; a rejected record without a valid id has a stable negative one."""
    records = '[{"id":1},{"id":"x"},{"group":5,"id":3},{"id":4}]'
    ids = read_page(records).ids

    assert ids[:2] == [1, 4]
    assert ids[3:] == [3]
    assert ids[2] < 0
    assert read_page(records).ids == ids


def test_the_id_of_a_rejected_record_is_of_its_content() -> None:
    """Records that differ have different ids."""
    first, second, third = read_page('[{"id":"x"},{"id":"y"},{"id":"x"}]').ids

    assert first == third != second


def test_usage_adds_up() -> None:
    """Each count is added on its own."""
    assert ApiUsage(1, 2, 3) + ApiUsage(10, 20, 30) == ApiUsage(11, 22, 33)
