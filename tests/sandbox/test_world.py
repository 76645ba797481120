"""The invented account: its chats, its lists and how they change."""

import re
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from etl.sandbox import Motion, World, build_world
from etl.sandbox.world import Order
from tests.support.builders import A, B
from tests.support.sandbox import CHATS, shared_chat


def all_chats(world: World) -> list[dict[str, Any]]:
    ids = {chat_id for number in world.numbers for chat_id in world.listing(number)}
    return [world.chat(chat_id) for chat_id in sorted(ids)]


def all_handles(world: World) -> list[dict[str, Any]]:
    return [handle for chat in all_chats(world) for handle in chat.get("chat_handles", ())]


def test_the_same_seed_invents_the_same_account() -> None:
    """The seed determines the chats, their order and their motion."""
    worlds = [build_world(seed=seed) for seed in (5, 5, 6)]
    for world in worlds:
        world.move(Motion(jumps=9, creates=2, deletes=2, renames=2, joins=2, leaves=2), A)
    first, again, other = (world.page(A, 1, 100) for world in worlds)

    assert first == again
    assert first != other


def test_lists_have_the_asked_length_and_share_chats() -> None:
    """Each number lists the requested count of chats and shares a tenth with another number."""
    world = build_world(chats_per_number=50, numbers=("+1", "+2", "+3"))
    first, second, third = (set(world.listing(number)) for number in world.numbers)
    shared = first & second

    assert (len(first), len(second), len(third)) == (50, 50, 50)
    assert (len(shared), len(third & (first | second))) == (5, 0)
    assert {world.owners(chat_id) for chat_id in shared} == {("+1", "+2")}


def test_an_account_may_be_empty() -> None:
    """A number without chats has no pages."""
    meta = {"page": 1, "total_pages": 0, "total_count": 0, "per_page": 25}

    assert build_world(chats_per_number=0).page(A, 1, 25) == {"data": [], "meta": meta}


def test_chats_are_lifelike(world: World) -> None:
    """The default account has missing fields, nulls, long names and large ids."""
    chats = all_chats(world)
    ids = [chat["id"] for chat in chats]
    names = [chat.get("display_name", "missing") for chat in chats]
    keys = {"id", "display_name", "service", "group", "message_count", "chat_handles"}

    assert {chat.get("service") for chat in chats} >= {"iMessage", "SMS", "RCS"}
    assert {chat.get("group") for chat in chats} >= {True, False}
    assert any(chat.keys() < keys for chat in chats)
    assert None in names
    assert max(len(name or "") for name in names) > 400
    assert any("⚽" in (name or "") for name in names)
    assert min(chat.get("message_count", 9) for chat in chats) == 1
    assert max(chat.get("message_count", 9) for chat in chats) > 1000
    assert len([chat_id for chat_id in ids if chat_id > 2**31]) == 5
    assert [chat_id for chat_id in ids if chat_id > 2**53] == [2**53 + 1]


def test_handles_are_lifelike(world: World) -> None:
    """Addresses, joining times and ids vary as in a real account; all addresses are fictitious."""
    handles = all_handles(world)
    addresses = [handle["phone_number"] for handle in handles if "phone_number" in handle]
    mail = [address for address in addresses if "@" in address]
    joined = [handle.get("joined_at", "missing") for handle in handles]
    times = [re.fullmatch(r"\S+T[\d:]{8}(\.\d+)?(.+)", at or "") for at in joined]
    fractions = {len(time[1] or "") for time in times if time}
    ids = [handle["id"] for handle in handles]

    assert 0.02 < len(mail) / len(addresses) < 0.1
    assert {address.rpartition("@")[2] for address in mail} == {"example.com", "example.org"}
    assert {address[:8] for address in addresses if "@" not in address} == {A[:8], "+1312555"}
    assert {None, "missing"} < set(joined)
    assert fractions == {0, 4, 7}
    assert {time[2] for time in times if time} >= {"Z", "-05:00", "+05:30"}
    assert len(set(ids)) < len(ids)


def test_both_numbers_take_part_in_a_shared_chat(world: World) -> None:
    """A chat that two numbers list has a handle for each of them."""
    handles = world.chat(shared_chat(world))["chat_handles"]
    addresses = [handle["phone_number"] for handle in handles]

    assert {A, B} < set(addresses)


def test_recency_puts_new_messages_at_the_head() -> None:
    """A new chat, and a chat with a new message, heads every list that contains it."""
    world = build_world(order="recency")
    before = world.listing(A)
    moved = world.jump(shared_chat(world))
    created = world.create(A)

    assert world.listing(A) == (created, moved, *(kept for kept in before if kept != moved))
    assert world.listing(B)[0] == moved
    assert world.chat(created)["message_count"] == 1


@pytest.mark.parametrize(("order", "descending"), [("id", False), ("id-desc", True)])
def test_order_by_id_ignores_activity(order: Order, descending: bool) -> None:
    """Ordered by id, a new message moves no chat, and a new chat has the highest id."""
    world = build_world(order=order)
    before = world.listing(A)
    world.jump(before[60])
    created = world.create(A)

    assert world.listing(A) == tuple(sorted((*before, created), reverse=descending))
    assert created > max(before)


def test_shuffled_is_another_order_at_every_request() -> None:
    """Shuffled, a page holds other chats at every request, and none twice."""
    world = build_world(order="shuffled")
    first, again = ([chat["id"] for chat in world.page(A, 2, 50)["data"]] for _ in range(2))

    assert first != again
    assert len(set(first)) == len(set(again)) == 50


def test_a_message_counts(world: World) -> None:
    """A new message raises the count by one; an earlier answer stays unchanged."""
    before = world.chat(world.create(A))
    after = world.chat(world.jump(before["id"]))

    assert before["message_count"] == 1
    assert after == before | {"message_count": 2}


def test_a_chat_can_leave_one_list(world: World, client: httpx.Client) -> None:
    """A chat that one number no longer lists is still found by Get Chat and the other number."""
    chat_id = world.leave_list(A, shared_chat(world))
    world.jump(chat_id)

    assert chat_id not in world.listing(A)
    assert chat_id in world.listing(B)
    assert client.get(f"{CHATS}/{chat_id}").status_code == 200


def test_a_deleted_chat_can_come_back(world: World) -> None:
    """Restoring a deleted chat puts it back unchanged, at its rank in every list."""
    chat_id = shared_chat(world)
    before = (world.chat(chat_id), world.listing(A), world.listing(B))
    world.delete(chat_id)

    assert chat_id not in {*world.listing(A), *world.listing(B)}

    world.restore(chat_id)

    assert (world.chat(chat_id), world.listing(A), world.listing(B)) == before


@pytest.mark.parametrize(
    ("change", "field"), [(World.rename, "display_name"), (World.change_service, "service")]
)
def test_a_field_changes_alone(
    world: World, change: Callable[[World, int], int], field: str
) -> None:
    """A rename or a change of service changes only that field, always to another value."""
    before = world.chat(world.create(A))
    after = world.chat(change(world, before["id"]))

    assert after[field] != before[field]
    assert after == before | {field: after[field]}


def test_fields_can_be_set(world: World) -> None:
    """A name, a service and an unknown field can be set."""
    chat_id = world.change_service(world.rename(world.create(A), "Book\x00club"), "Pigeon")
    chat = world.chat(world.edit(chat_id, mood="calm"))

    assert (chat["display_name"], chat["service"], chat["mood"]) == (
        "Book\x00club",
        "Pigeon",
        "calm",
    )


def test_participants_join_and_leave(world: World) -> None:
    """A participant joins, all leave until the account is alone, and one comes back."""
    chat_id = world.create(A)
    before = world.chat(chat_id)["chat_handles"]
    joined = world.chat(world.join(chat_id))["chat_handles"]
    for _ in joined:
        world.leave(chat_id)
    alone = world.chat(chat_id)["chat_handles"]

    assert joined[:-1] == before
    assert alone == [before[0]]
    assert world.chat(world.join(chat_id, joined[-1]))["chat_handles"] == [before[0], joined[-1]]


def test_unknown_numbers_and_chats_are_key_errors(world: World) -> None:
    """Every operation on an unknown number or chat raises KeyError."""
    for operate in (world.chat, world.delete, world.restore, world.jump, world.rename, world.join):
        with pytest.raises(KeyError):
            operate(1)
    with pytest.raises(KeyError):
        world.leave_list(A, 1)
    with pytest.raises(KeyError):
        world.page("+13125550199", 1, 25)


def test_fractions_of_motion_add_up(world: World) -> None:
    """A rate of 0.1 is one change in ten requests, a rate of 0.5 one in two."""
    motion = Motion(creates=0.1, deletes=0.5)
    lengths = []
    for _ in range(10):
        world.move(motion, A)
        lengths.append(len(world.listing(A)))

    assert lengths == [120, 119, 119, 118, 118, 117, 117, 116, 116, 116]


def test_motion_on_an_empty_list(world: World) -> None:
    """Motion on an empty list changes nothing and does not fail."""
    for chat_id in world.listing(A):
        world.delete(chat_id)
    world.move(Motion(jumps=1, deletes=1, renames=1, joins=1, leaves=1), A)

    assert world.listing(A) == ()
