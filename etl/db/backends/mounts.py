"""What Linux has mounted where a SQLite file lies, and whether SQLite is safe on it."""

import re
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

MOUNTINFO = Path("/proc/self/mountinfo")
# Of other machines, or of the host of a virtual machine or container.
_NETWORKS: Final = re.compile(
    "9p|afs|beegfs|ceph|cifs|coda|fakeowner|gfs2|glusterfs|lustre|ncpfs|nfs4?|ocfs2|orangefs|prl_fs|"
    "pvfs2|smb3|smbfs|vboxsf|virtiofs|vmhgfs|fuse\\.(ceph|gcsfuse|glusterfs|goofys|grpcfuse|juicefs|"
    "mount-s3|osxfs|rclone|s3fs|sshfs|vmhgfs-fuse|weed)"
)


class Mount(NamedTuple):
    """A mount point and the type of its file system."""

    point: Path
    kind: str


def risks(file: Path) -> list[str]:
    """What may damage the database at this path, a sentence each; empty where Linux does not tell.

    The file need not exist.
    """
    with suppress(OSError, RuntimeError):  # RuntimeError: links that lead in a circle.
        path = file.resolve()
        return _risks(path, mount_of(path, MOUNTINFO.read_text("utf-8", "surrogateescape")))
    return []


def _risks(path: Path, mount: Mount | None) -> list[str]:
    found = []
    if mount and _NETWORKS.fullmatch(mount.kind):
        found.append(
            f"{path} is on a network file system ({mount.kind} at {mount.point}), where SQLite's "
            "locks and shared memory can fail and damage it. Use a local disk or PostgreSQL."
        )
    if mount and mount.point == path:
        found.append(
            f"Only the file {path} is mounted, so what is in {path.name}-wal beside it can be "
            "lost. Mount its folder."
        )
    return found


def mount_of(path: Path, mountinfo: str) -> Mount | None:
    """The mount that holds an absolute path without links; see proc(5) for the text."""
    found = None
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        fields, kinds = before.split(" "), after.split(" ")
        if len(fields) < 6 or not kinds[0]:
            continue
        mount = Mount(Path(_unescaped(fields[4])), kinds[0])
        # Of two at the same point, the later one hides the earlier one.
        is_nearer = found is None or len(mount.point.parts) >= len(found.point.parts)
        if is_nearer and path.is_relative_to(mount.point):
            found = mount
    return found


def _unescaped(text: str) -> str:
    """With the blanks, tabs, newlines and backslashes that the kernel writes as octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
