"""A plain HTTP client of the sandbox, and a look at its world."""

import httpx

from etl.sandbox import Sandbox, World
from tests.support.builders import A, B

CHATS = "/api/partner/v2/chats"


def connect(sandbox: Sandbox, token: str = "sandbox-token") -> httpx.Client:
    headers = {"X-LINQ-INTEGRATION-TOKEN": token}
    return httpx.Client(base_url=sandbox.url, headers=headers, trust_env=False)


def shared_chat(world: World) -> int:
    """The first chat that both A and B list."""
    return next(chat_id for chat_id in world.listing(A) if chat_id in world.listing(B))
