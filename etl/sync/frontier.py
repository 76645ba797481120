"""How far a list that shrinks has been read, when it is read one page at a time."""

# Bounds how often one page behind a gap is read again while the list keeps shrinking there.
MAX_REREADS = 3


class Frontier:
    """How many rows, counted from the list's head, have been read for certain.

    A page read behind a gap counts once the gap is filled: when the gap has brought as many new ids
    as there were rows in it, or when rows kept sliding towards it meanwhile. Otherwise something
    may have pushed rows from the gap into that page, and it is read again, up to MAX_REREADS times.
    """

    def __init__(self, rows: int, per_page: int) -> None:
        self._rows = rows
        self._per_page = per_page
        self._ahead = range(0)  # rows read behind a gap
        self._expected_new_ids = 0  # in the gap
        self._rereads = 0  # of the page behind the gap

    @property
    def next_page(self) -> int:
        return self._rows // self._per_page + 1

    def advance(self, page_number: int, *, shrunk_by: int, new_ids: int) -> None:
        """Record that a page with `new_ids` was read, and by how much the total had shrunk."""
        rows = range((page_number - 1) * self._per_page, page_number * self._per_page)
        self._rows = max(self._rows - shrunk_by, 0)
        if rows.start > self._rows:
            self._rereads = self._rereads + 1 if rows.start == self._ahead.start else 0
            self._ahead, self._expected_new_ids = rows, rows.start - self._rows
            return
        self._rows = max(self._rows, rows.stop)
        self._expected_new_ids -= new_ids
        if self._rows >= self._ahead.start and self._ahead.stop > 0:
            if self._expected_new_ids <= 0 or shrunk_by or self._rereads >= MAX_REREADS:
                self._rows = max(self._rows, self._ahead.stop - shrunk_by)
            self._ahead = range(self._ahead.start, 0)
