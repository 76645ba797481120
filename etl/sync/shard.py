"""A fixed part of the phone numbers, which every machine computes alike."""

from dataclasses import dataclass
from hashlib import blake2b


@dataclass(frozen=True, slots=True)
class Shard:
    """Part `index`, from 0, of `count` parts.

    A number's part depends on nothing but the number and `count`.
    """

    index: int
    count: int

    def has(self, phone_number: str) -> bool:
        """Whether the number, in E.164, is in this part."""
        digest = blake2b(phone_number.encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") % self.count == self.index

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"
