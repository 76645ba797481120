"""The Linq Partner API v2."""
