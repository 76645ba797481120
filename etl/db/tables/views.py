"""The views."""

from typing import Final

# By name. The migrations hold their SQL.
VIEWS: Final = {
    "messages_per_day": "Messages gained per configured number and UTC day. The count at a "
    "number's first load is not a gain.",
    "current_participants": "Current participants of current chats, for each number that lists "
    "the chat. Nothing marked as removed.",
}
