"""The lock of a folder: one writer at a time, whatever the host or the launcher.

Called by training for a run's folder, and by `launch` for the folder of the ranks' logs.

The writer's file `.lock` says who it is, and a thread touches it every BEAT seconds. A lock is
stale if its process has ended, which its own host can tell, or if it is not touched for STALE
seconds while another host watches it. No clocks are compared, and files are reopened for each
look, because network file systems cache attributes.
"""

import json
import logging
import os
import platform
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from uuid import uuid4

from intel_ft.errors import IntelFTError, UserError
from intel_ft.files import is_disk_full

LOCK = ".lock"
_TAKEOVER = ".lock.takeover"  # exists for the moment in which a stale lock is replaced
_WRITTEN = ".lock.partial"
FILES = (LOCK, _TAKEOVER, _WRITTEN)
BEAT = 4.0
STALE = 20.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Owner:
    """The process that holds a lock.

    machine: the boot and the process namespace in which `pid` has a meaning; started: the clock
    ticks after boot at which the process began, because a pid is used again.
    """

    pid: int
    host: str
    machine: str
    started: str
    since: str
    token: str

    @classmethod
    def this_process(cls) -> "Owner":
        """This process, with a token of its own."""
        pid, now = os.getpid(), time.strftime("%Y-%m-%d %H:%M:%S %Z")
        return cls(pid, platform.node(), this_machine(), _started(pid) or "", now, uuid4().hex)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


_UNREADABLE = Owner(0, "an unknown host", "", "", "an unknown time", "")


class FolderLock:
    """The lock of `folder`, held from `take` to `release`."""

    def __init__(self, folder: Path, owner: Owner, created: list[Path]) -> None:
        self._folder, self._path, self._owner, self._created = folder, folder / LOCK, owner, created
        self._released = threading.Event()
        self._thread: threading.Thread | None = None

    @classmethod
    def take(cls, folder: Path) -> "FolderLock":
        """Create the folder if need be, and the lock in it.

        Raises UserError if the folder cannot be written to, or another process writes to it.
        """
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder} is a file, not a folder: choose another output.directory")
        owner = Owner.this_process()
        created = [part for part in (folder, *folder.parents) if not part.exists()]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            while not _create(folder / LOCK, owner) and not _take_over(folder, owner):
                pass
        except (OSError, UserError) as error:
            _remove_empty(created)
            if isinstance(error, UserError) or is_disk_full(error):
                raise
            raise UserError(
                f"{folder}: cannot be written to ({error.strerror}): choose another "
                "output.directory"
            ) from None
        return cls(folder, owner, created)

    def keep(self) -> None:
        """Touch the lock from now on, in a thread, so that other hosts see that it is held."""
        self._thread = threading.Thread(target=self._beat, name="folder lock", daemon=True)
        self._thread.start()

    def require_held(self) -> None:
        """Raise IntelFTError if another process has taken over, as after this one was frozen."""
        holder = _read(self._path)
        if holder is None:  # deleted by a clean-up
            with suppress(OSError):
                _create(self._path, self._owner)
        elif holder != self._owner:
            raise IntelFTError(
                f"{self._folder}: {holder} took over this folder at {holder.since}, because this"
                f" process did not renew its lock for {STALE:g} s: this process stops writing to"
                " it"
            )

    def release(self) -> None:
        """Delete the lock, and the folder if it was created for the lock alone."""
        self._released.set()
        if self._thread is not None:
            self._thread.join()
        if _read(self._path) == self._owner:
            self._path.unlink(missing_ok=True)
        _remove_empty(self._created)

    def _beat(self) -> None:
        while not self._released.wait(BEAT):
            with suppress(OSError):
                if _read(self._path) == self._owner:
                    os.utime(self._path)


def _take_over(folder: Path, owner: Owner) -> bool:
    """Replace a stale lock by that of `owner`; False if it has to be looked at again.

    Raises UserError if it is not stale.
    """
    path, guard = folder / LOCK, folder / _TAKEOVER
    holder = _read(path)
    if holder is None:
        return False
    ended = _has_ended(holder)
    if not ended and _is_alive(path, holder):
        raise _in_use(folder, _read(path) or holder)
    if not _create(guard, owner):  # another process is about to replace it
        taker = _read(guard)
        if taker is not None and not _has_ended(taker) and _is_alive(guard, taker):
            raise _in_use(folder, taker)
        guard.unlink(missing_ok=True)  # that process was killed in that moment
        return False
    try:
        if _read(path) != holder:
            return False
        _write(folder / _WRITTEN, owner, os.O_TRUNC)
        (folder / _WRITTEN).replace(path)
    finally:
        guard.unlink(missing_ok=True)
    reason = "has ended" if ended else f"did not renew it for {STALE:g} s"
    logger.warning("%s: took over the lock of %s, which %s", folder, holder, reason)
    return True


def _in_use(folder: Path, holder: Owner) -> UserError:
    return UserError(
        f"{folder} is in use: {holder} has been writing to it since {holder.since}: wait until it "
        "has ended, stop it, or choose another output.directory"
    )


def _has_ended(holder: Owner) -> bool:
    """Whether this host can tell that the process does not run any more."""
    return holder.machine == this_machine() and _started(holder.pid) != holder.started


def _is_alive(path: Path, holder: Owner) -> bool:
    """Whether the process runs, or is seen to touch its file; takes up to STALE seconds."""
    if holder.machine == this_machine():
        return True
    before, end = _touched(path), time.monotonic() + STALE
    logger.info("%s: watching whether %s still writes to this folder", path.parent, holder)
    while time.monotonic() < end:
        time.sleep(0.25)
        if (touched := _touched(path)) != before:
            return touched is not None
    return False


def _create(path: Path, owner: Owner) -> bool:
    """Create the file unless it exists: atomic on network file systems, too."""
    try:
        _write(path, owner, os.O_EXCL)
    except FileExistsError:
        return False
    return True


def _write(path: Path, owner: Owner, flag: int) -> None:
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | flag, 0o666)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(asdict(owner), file)
    except OSError:  # such as a full disk
        path.unlink(missing_ok=True)
        raise


def _read(path: Path) -> Owner | None:
    """Who wrote the file; None if there is none."""
    for _ in range(10):
        try:
            return Owner(**json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError):
            time.sleep(0.02)  # it may be being written
    return _UNREADABLE


def _touched(path: Path) -> int | None:
    """The file's time of modification; None if there is no file."""
    try:
        with path.open("rb") as file:
            return os.fstat(file.fileno()).st_mtime_ns
    except OSError:
        return None


def this_machine() -> str:
    """The boot and the process namespace in which PIDs have a meaning."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{platform.node()} {boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return platform.node()


def _started(pid: int) -> str | None:
    """When the process began, in clock ticks after boot; None if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:  # the innermost first
        with suppress(OSError):
            folder.rmdir()
