"""The Linq Partner API v2."""

import sys

# httpx's own command line, unused here, imports Rich: a sixth of the time that this program starts.
sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]  # httpx goes without it
