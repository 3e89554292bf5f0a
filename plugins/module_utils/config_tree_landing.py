# Copyright: (c) 2026, hikyaku.mail contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Land a set of files so that a kill at any moment loses nothing.

A landing has one moment of truth, the rename that makes ``pending`` point to it: before it nothing
has happened, after it everything will. It holds the complete state to come (``after``), the
complete state it replaces (``before``) and the manifest to come, so that whoever comes next can
finish the job without knowing anything else. Each file is replaced by a rename.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import secrets
import shutil
import stat
import time
import typing as t
from pathlib import Path

STATE_ROOT = "/var/lib/hikyaku/config"
RUN_ROOT = "/run/hikyaku-config"
TEMPORARY_SUFFIX = ".hikyaku-new"


class Attributes(t.NamedTuple):
    mode: int
    uid: int
    gid: int


@dataclasses.dataclass(frozen=True)
class File:
    """What is, or shall be, at a path. ``content`` of a link is where it points."""

    content: bytes
    attributes: Attributes
    kind: t.Literal["file", "link", "other"] = "file"


@dataclasses.dataclass(frozen=True)
class State:
    """The state of a set of paths; None where nothing is or shall be."""

    files: dict[str, File | None] = dataclasses.field(default_factory=dict)
    dirs: dict[str, Attributes | None] = dataclasses.field(default_factory=dict)


class Record(t.NamedTuple):
    """What the manifest knows of a file."""

    sha256: str
    mode: str
    uid: int
    gid: int


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The files that a configuration owns, the directories it made, and what was validated."""

    fingerprint: str = ""
    files: dict[str, Record] = dataclasses.field(default_factory=dict)
    dirs: list[str] = dataclasses.field(default_factory=list)

    def to_json(self) -> dict[str, t.Any]:
        files = {path: record._asdict() for path, record in sorted(self.files.items())}
        return {"fingerprint": self.fingerprint, "files": files, "dirs": sorted(self.dirs)}

    @classmethod
    def from_json(cls, data: dict[str, t.Any]) -> Manifest:
        files = {path: Record(**record) for path, record in data["files"].items()}
        return cls(data["fingerprint"], files, data["dirs"])


@dataclasses.dataclass(frozen=True)
class Landing:
    """All that is needed to carry out a change of the disk, and to take it back."""

    before: State
    after: State
    manifest: Manifest


class LandingError(Exception):
    pass


def _attributes(status: os.stat_result) -> Attributes:
    return Attributes(stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid)


def _temporary(path: Path) -> Path:
    # Hidden and with a foreign suffix: no include pattern of a daemon matches it.
    return path.with_name(f".{path.name}{TEMPORARY_SUFFIX}")


class Disk:
    """The file system below ``root``; ``step`` hears of every change before it is made."""

    def __init__(self, root: str = "/", step: t.Callable[[str], None] = lambda _name: None) -> None:
        self._root = root.rstrip("/")
        self._step = step

    def real(self, path: str) -> Path:
        return Path(self._root + path)

    # Looking

    def read(self, path: str) -> File | None:
        """What is at the path itself; a directory counts as no file."""
        real = self.real(path)
        try:
            status = real.lstat()
            attributes = _attributes(status)
            if stat.S_ISLNK(status.st_mode):
                return File(os.fsencode(real.readlink()), attributes, "link")
            if stat.S_ISREG(status.st_mode):
                with os.fdopen(os.open(real, os.O_RDONLY | os.O_NOFOLLOW), "rb") as stream:
                    return File(stream.read(), attributes)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return None if stat.S_ISDIR(status.st_mode) else File(b"", attributes, "other")

    def directory(self, path: str) -> Attributes | None:
        """A directory's attributes; a link to a directory is one."""
        try:
            status = self.real(path).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return _attributes(status) if stat.S_ISDIR(status.st_mode) else None

    # Changing

    def make_private(self, path: Path) -> None:
        if not path.is_dir():
            self._step(f"mkdir {path}")
            path.mkdir(mode=0o700, parents=True)
            self.sync([path.parent])

    def write(self, path: Path, file: File) -> None:
        """Write a new file; it is never readable by more than it should be."""
        self._step(f"write {path}")
        path.unlink(missing_ok=True)
        if file.kind == "link":
            path.symlink_to(os.fsdecode(file.content))
            os.chown(path, file.attributes.uid, file.attributes.gid, follow_symlinks=False)
            return
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with os.fdopen(os.open(path, flags, 0o600), "wb") as stream:
            stream.write(file.content)
            stream.flush()
            os.fchown(stream.fileno(), file.attributes.uid, file.attributes.gid)
            os.fchmod(stream.fileno(), file.attributes.mode)  # after chown, which clears set-id

    def sync(self, paths: t.Iterable[Path]) -> None:
        """After all writes, so that the first wait carries most of the rest."""
        for path in paths:
            if not path.is_symlink():
                descriptor = os.open(path, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)

    def rename(self, old: Path, new: Path) -> None:
        self._step(f"rename {old} {new}")
        old.rename(new)

    def unlink(self, path: Path) -> None:
        if path.is_symlink() or path.exists():
            self._step(f"unlink {path}")
            path.unlink()

    def remove_tree(self, path: Path) -> None:
        if path.is_dir():
            self._step(f"rmtree {path}")
            shutil.rmtree(path)

    def link(self, path: Path, target: str) -> None:
        temporary = _temporary(path)
        self._step(f"link {temporary}")
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target)
        self.rename(temporary, path)
        self.sync([path.parent])

    def write_json(self, path: Path, data: t.Any) -> None:
        content = json.dumps(data, indent=1).encode()
        temporary = _temporary(path)
        self.write(temporary, File(content, Attributes(0o600, os.geteuid(), os.getegid())))
        self.sync([temporary])
        self.rename(temporary, path)
        self.sync([path.parent])

    def apply(self, state: State) -> None:
        """Bring the paths to a state. Running it again after a kill finishes it."""
        wanted = {p: f for p, f in sorted(state.files.items()) if not (f and f.kind == "other")}
        changed = {path: file for path, file in wanted.items() if self.read(path) != file}
        dirs = dict(sorted(state.dirs.items()))
        touched = {self.real(path).parent for path in (*changed, *dirs)}
        for path in state.files:
            self.unlink(_temporary(self.real(path)))
        for path in (p for p, f in changed.items() if f is None and dirs.get(p)):
            self.unlink(self.real(path))  # a directory takes its place
        for path, attributes in dirs.items():
            if attributes:
                self._make_directory(self.real(path), attributes)
        new = {self.real(path): file for path, file in changed.items() if file}
        for real, file in new.items():
            self.write(_temporary(real), file)
        self.sync(_temporary(real) for real in new)
        # From here on renames only: the moment in which old and new stand side by side is short.
        for path in (p for p, f in changed.items() if f is None and not dirs.get(p)):
            self.unlink(self.real(path))
        for path in (p for p, attributes in reversed(dirs.items()) if not attributes):
            self._remove_directory(self.real(path))
        for real in new:
            self.rename(_temporary(real), real)
        self.sync(sorted(path for path in touched if path.is_dir()))

    def _make_directory(self, real: Path, attributes: Attributes) -> None:
        if not real.is_dir():
            self._step(f"mkdir {real}")
            real.mkdir(mode=0o700)
        if _attributes(real.stat()) != attributes:
            self._step(f"chmod {real}")
            os.chown(real, attributes.uid, attributes.gid)
            real.chmod(attributes.mode)

    def _remove_directory(self, real: Path) -> None:
        if real.is_dir() and not any(real.iterdir()):
            self._step(f"rmdir {real}")
            real.rmdir()

    @contextlib.contextmanager
    def lock(self, timeout: float = 300.0) -> t.Iterator[None]:
        """One landing on a host at a time. The kernel drops the lock of a killed process."""
        directory = self.real(RUN_ROOT)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        deadline = time.monotonic() + timeout
        with (directory / ".lock").open("w") as stream:
            while True:
                try:
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        message = f"another run has held {stream.name} for {timeout:g} seconds"
                        raise LandingError(message) from None
                    time.sleep(0.05)
            yield


class Store:
    """What is remembered of one configuration: manifest.json, last_good/ and a pending landing."""

    def __init__(self, disk: Disk, name: str) -> None:
        self._disk = disk
        self._base = disk.real(f"{STATE_ROOT}/{name}")
        self._pending = self._base / "pending"
        self._last_good = self._base / "last_good"

    def manifest(self) -> Manifest:
        return self._load_manifest(self._base)

    def pending(self) -> Landing | None:
        """The landing that was committed and has not been reported to anybody."""
        if not self._pending.is_dir():
            return None
        # The last thing before the end moves before/ to last_good/.
        before = self._pending / "before"
        return Landing(
            before=self._load(before if before.is_dir() else self._last_good),
            after=self._load(self._pending / "after"),
            manifest=self._load_manifest(self._pending),
        )

    def recover(self) -> Landing | None:
        """Finish what an earlier run had committed. It stays pending until it can be reported."""
        self._sweep()
        pending = self.pending()
        if pending:
            self._carry_out(pending)
        return pending

    def land(self, landing: Landing) -> None:
        self._make_base()
        new = self._base / f"landing-{secrets.token_hex(4)}"
        self._disk.make_private(new)
        self._save(new / "before", landing.before)
        self._save(new / "after", landing.after)
        self._disk.write_json(new / "manifest.json", landing.manifest.to_json())
        self._disk.link(self._pending, new.name)  # the moment of truth
        self._carry_out(landing)
        self.finish(landing.manifest)

    def finish(self, manifest: Manifest) -> None:
        """The disk is as it should be: keep what is known of it."""
        self._make_base()
        self._disk.write_json(self._base / "manifest.json", manifest.to_json())
        if (self._pending / "before").is_dir():
            self._disk.remove_tree(self._last_good)
            self._disk.rename(self._pending / "before", self._last_good)
        self._discard()

    def _make_base(self) -> None:
        root = self._disk.real(STATE_ROOT)
        if not root.parent.is_dir():
            root.parent.mkdir(parents=True)
            root.parent.chmod(0o755)  # others keep things here too, whatever the umask says
        self._disk.make_private(root)
        self._disk.make_private(self._base)

    def _carry_out(self, landing: Landing) -> None:
        try:
            self._disk.apply(landing.after)
        except OSError as error:
            # A full disk or a file that can't be replaced: all files or none, so go back.
            try:
                self._disk.apply(landing.before)
            except OSError as second:
                raise LandingError(
                    f"landing failed ({error}) and so did going back ({second}); "
                    "the next run will try to finish it"
                ) from error
            self._discard()
            raise LandingError(f"landing failed, the old files are back: {error}") from error

    def _discard(self) -> None:
        self._disk.unlink(self._pending)
        self._disk.sync([self._base])
        self._sweep()

    def _sweep(self) -> None:
        in_use = self._pending.readlink().name if self._pending.is_symlink() else ""
        for landing in self._base.glob("landing-*"):
            if landing.name != in_use:
                self._disk.remove_tree(landing)

    def _save(self, directory: Path, state: State) -> None:
        """Write index.json, and the files with their modes in a tree that mirrors /."""
        directory.mkdir(mode=0o700)
        for path, file in state.files.items():
            if file and file.kind != "other":  # a socket or device can't be kept
                real = Path(f"{directory}/files{path}")
                real.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._disk.write(real, file)
        index = {
            "files": {
                path: file and {"kind": file.kind, **file.attributes._asdict()}
                for path, file in state.files.items()
            },
            "dirs": {path: attr and attr._asdict() for path, attr in state.dirs.items()},
        }
        self._disk.sync([directory, *directory.rglob("*")])
        self._disk.write_json(directory / "index.json", index)

    @staticmethod
    def _load_manifest(directory: Path) -> Manifest:
        try:
            return Manifest.from_json(json.loads((directory / "manifest.json").read_bytes()))
        except FileNotFoundError:
            return Manifest()

    @staticmethod
    def _load(directory: Path) -> State:
        index = json.loads((directory / "index.json").read_bytes())
        kept = Disk(f"{directory}/files")
        files: dict[str, File | None] = {}
        for path, entry in index["files"].items():
            files[path] = None
            if entry:
                kind, file = entry.pop("kind"), kept.read(path)
                files[path] = File(file.content if file else b"", Attributes(**entry), kind)
        dirs = {path: attr and Attributes(**attr) for path, attr in index["dirs"].items()}
        return State(files, dirs)
