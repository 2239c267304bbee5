"""Make what was written to a file system survive a power failure, and know what the file system can do."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

NETWORK_FILE_SYSTEMS = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "lustre", "glusterfs", "fuse.sshfs"})
"""Types, as Linux names them, whose locks and fsync depend on another machine."""

_MOUNTS = Path("/proc/self/mountinfo")


def sync_folder(folder: Path) -> None:
    """Put the names of a folder's files on the disk. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(file: Path, content: bytes) -> None:
    """Write a small file in one step: a crash leaves the old content or the new one. Raises OSError."""
    partial = file.with_name(f"{file.name}.partial")
    with partial.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(file)
    sync_folder(file.parent)


def free_bytes(folder: Path) -> int:
    """Return how much can still be written to a folder's file system. Raises OSError."""
    return shutil.disk_usage(folder).free


def network_file_system(folder: Path) -> str | None:
    """Return the type of the file system that a folder is on if it is one of a network's; None if not, or not known."""
    try:
        lines = _MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines()
        wanted = folder.stat().st_dev
    except OSError:
        return None
    for line in lines:
        fields, _, rest = line.partition(" - ")
        device = fields.split()[2:3]
        if device == [f"{os.major(wanted)}:{os.minor(wanted)}"]:
            found = rest.split()[:1]
            return found[0] if found and found[0] in NETWORK_FILE_SYSTEMS else None
    return None
