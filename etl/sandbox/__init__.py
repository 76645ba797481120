"""A stand-in for the Linq Partner API v2 on loopback: invented chats, moving lists, faults."""

from etl.sandbox.faults import Faults
from etl.sandbox.server import Request, Sandbox
from etl.sandbox.traffic import Message, Traffic
from etl.sandbox.world import Motion, World, build_world

__all__ = ["Faults", "Message", "Motion", "Request", "Sandbox", "Traffic", "World", "build_world"]
