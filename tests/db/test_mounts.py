"""Where a SQLite file lies: network file systems and mounted files are warned of."""

from pathlib import Path

import pytest

from etl.db.backends import mounts
from etl.db.backends.mounts import Mount, mount_of

MOUNTINFO = r"""
21 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
22 21 0:20 / /proc rw,nosuid - proc proc rw
40 21 0:41 / /srv rw shared:5 master:2 - nfs4 nas:/export rw,vers=4.2
41 40 8:1 / /srv/local rw - xfs /dev/sda1 rw
42 21 0:43 / /mnt/two\040words\134and\011tab rw - cifs //nas/share rw
43 21 0:44 / /mnt/over rw - 9p host rw
44 21 8:2 / /mnt/over rw - btrfs /dev/sdb rw
45 21 8:3 /linq.db /home/etl/linq.db rw - ext4 /dev/sdc rw
46 21 0:45 / /home/ada/remote rw - fuse.sshfs ada@host: rw
47 21 0:46 / /home/ada/disk rw - fuseblk /dev/sdd1 rw
a line of a later kernel
""".lstrip()


@pytest.mark.parametrize(
    ("path", "mount"),
    [
        ("/var/lib/linq.db", ("/", "ext4")),
        ("/srv/linq.db", ("/srv", "nfs4")),
        ("/srv/local/deep/linq.db", ("/srv/local", "xfs")),
        ("/srv/local-not/linq.db", ("/srv", "nfs4")),
        ("/srv2/linq.db", ("/", "ext4")),
        ("/mnt/two words\\and\ttab/linq.db", ("/mnt/two words\\and\ttab", "cifs")),
        ("/mnt/over/linq.db", ("/mnt/over", "btrfs")),
        ("/home/ada/remote/linq.db", ("/home/ada/remote", "fuse.sshfs")),
    ],
)
def test_the_nearest_mount_counts(path: str, mount: tuple[str, str]) -> None:
    """By whole names; of two at one place, the one on top."""
    assert mount_of(Path(path), MOUNTINFO) == Mount(Path(mount[0]), mount[1])


def test_no_mount() -> None:
    """Nothing is known of a text that is something else."""
    assert mount_of(Path("/srv/linq.db"), "something else\n") is None


@pytest.fixture
def mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A text in which Linux is said to tell its mounts."""
    path = tmp_path / "mountinfo"
    path.write_text(MOUNTINFO)
    monkeypatch.setattr(mounts, "MOUNTINFO", path)
    return path


@pytest.mark.usefixtures("mounted")
def test_what_is_warned_of() -> None:
    """A file on a network, and a file that is mounted without its folder."""
    (network,) = mounts.risks(Path("/srv/linq.db"))
    assert network == (
        "/srv/linq.db is on a network file system (nfs4 at /srv), where SQLite's locks and shared "
        "memory can fail and damage it. Use a local disk or PostgreSQL."
    )
    (file,) = mounts.risks(Path("/home/etl/linq.db"))
    assert file == (
        "Only the file /home/etl/linq.db is mounted, so what is in linq.db-wal beside it can be "
        "lost. Mount its folder."
    )
    assert mounts.risks(Path("/home/ada/disk/linq.db")) == []
    assert mounts.risks(Path("/var/lib/linq.db")) == []


def test_links_are_followed(mounted: Path, tmp_path: Path) -> None:
    """The file behind them counts; a circle is not a crash."""
    mounted.write_text(f"1 0 0:1 / / rw - ext4 d rw\n2 1 0:2 / {tmp_path}/nas rw - nfs4 d rw\n")
    (tmp_path / "nas").mkdir()
    (tmp_path / "linq.db").symlink_to(tmp_path / "nas/real.db")
    (warning,) = mounts.risks(Path("linq.db"))
    assert warning.startswith(f"{tmp_path}/nas/real.db is on a network file system")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    assert mounts.risks(Path("circle")) == []


def test_another_system_than_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not tell, so nothing is warned of."""
    monkeypatch.setattr(mounts, "MOUNTINFO", Path("/nowhere"))
    assert mounts.risks(Path("/srv/linq.db")) == []
