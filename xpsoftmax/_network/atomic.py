"""Files that are replaced in one step, also where a writer is killed; and what killed writers have left behind."""

from __future__ import annotations

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


def replace(target: Path, content: bytes) -> None:
    """Put a new file in the place of the old one, in one step and with its permissions, or change nothing.

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
    """Let the new name of a file outlast a crash of the machine."""
    if fcntl is None:  # Windows opens no folders
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:  # some file systems have no such thing
        pass
    finally:
        os.close(descriptor)
