"""Files that are replaced in one step, also where a writer is killed; and what killed writers have left behind."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

PATTERN = ".xpsoftmax-*.part"
"""Names of temporary files. A writer locks its own as long as it lives: the system frees the lock of a killed one."""


NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EACCES)
"""Errors of systems that cannot synchronise a folder, and of a folder that may be written to but not read."""


def replace(target: Path, content: bytes) -> None:
    """Replace a file by a new one with the same permissions, in one step. If that fails, the old file stays unchanged.

    Temporary files that killed writers have left in the folder are removed.
    """
    remove_leftovers(target.parent)
    temporary, opened = _begun(target.parent)
    try:
        with opened as file:
            if target.exists():
                temporary.chmod(target.stat().st_mode & 0o7777)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # or a crash of the machine could leave the name without the bytes
            if fcntl is not None:
                temporary.replace(target)  # while it is locked
        if fcntl is None:
            temporary.replace(target)  # Windows does not rename an open file
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _settle(target.parent)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of dead writers; a file that cannot be locked is left alone."""
    if fcntl is None:  # without locks, the file of a live writer cannot be recognised
        return
    for leftover in folder.glob(PATTERN):
        try:
            with leftover.open("rb+") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                leftover.unlink()
        except OSError:  # a live writer has locked or renamed it; or it is another user's
            continue


def _begun(folder: Path) -> tuple[Path, BinaryIO]:
    """Return a new temporary file, locked where the system has locks."""
    while True:
        temporary = folder / PATTERN.replace("*", os.urandom(8).hex())
        file = temporary.open("xb")
        if _is_kept(file):
            return temporary, file
        file.close()  # another writer took it for a leftover before it was locked


def _is_kept(file: BinaryIO) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: no one can lock it to remove it, either
        return True
    return os.fstat(file.fileno()).st_nlink > 0


def _settle(folder: Path) -> None:
    """Write the new name of a file to the disk, so that it outlasts a crash of the machine."""
    if fcntl is None:  # Windows opens no folders
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno in NO_SYNC:
            return
        error.add_note("The new file is in its place, but a crash of the machine could still lose it.")
        raise
