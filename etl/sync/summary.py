"""A run in one sentence."""

from etl.db.run_log import Record


def summary(record: Record) -> str:
    """What became of a run, without a phone number or a name."""
    return (
        f"Run {record['id']} ({record['command']}): {record['status']}, "
        f"{record['numbers_failed']} of {record['numbers_total']} numbers failed, "
        f"{record['chats_inserted']} chats new, {record['chats_updated']} changed, "
        f"{record['chats_removed']} removed, {record['requests']} requests."
    )
