# Copyright: (c) 2026, hikyaku.mail contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The configuration on the host: stage, build, validate, compare, land, and tell.

What is to be laid comes from config_tree_task; how it lands, and what a kill leaves, is in
config_tree_landing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import grp
import hashlib
import hmac
import json
import os
import pwd
import secrets
import shutil
import time
import typing as t
from pathlib import Path

from .config_tree_landing import (
    RUN_ROOT,
    TEMPORARY_SUFFIX,
    Attributes,
    Disk,
    File,
    Landing,
    Manifest,
    Record,
    State,
    Store,
)
from .config_tree_task import Command, Laid, tree_of

SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_LARGEST_DIFF = 100_000  # bytes; Ansible shows nothing of a larger one

Runner = t.Callable[[list[str], str], tuple[int, str, str]]


class ConfigTreeError(Exception):
    """What is wrong, in words for the administrator; details become the task's result."""

    def __init__(self, message: str, **details: t.Any) -> None:
        super().__init__(message)
        self.details = details


@dataclasses.dataclass(frozen=True)
class Request:
    name: str
    trees: list[dict[str, t.Any]]
    build: list[Command]
    validate: list[Command]
    laid: list[Laid]
    contents: dict[str, bytes]


@dataclasses.dataclass(frozen=True)
class Outcome:
    changed: bool = False
    files: list[str] = dataclasses.field(default_factory=list)
    diff: list[dict[str, str]] = dataclasses.field(default_factory=list)
    skipped_commands: list[list[str]] = dataclasses.field(default_factory=list)
    resumed: bool = False


def deploy(request: Request, disk: Disk, runner: Runner, check: bool = False) -> Outcome:
    """Bring the host's files to the request; in check mode only say what would be done."""
    with disk.lock():
        outcome = _Deployment(request, disk, runner, check).run()
        files = sorted({*outcome.files, *_untaken(request, disk, runner)})
    return dataclasses.replace(outcome, changed=bool(files), files=files)


def _untaken(request: Request, disk: Disk, runner: Runner) -> t.Iterator[str]:
    """Files that landed after their unit was last started or reloaded.

    A run that ends before its handlers, by a kill or a lost connection, leaves a daemon with the
    configuration from before. The next run has to tell of those files again.
    """
    now = time.time()
    for unit, trees in _by_unit(request).items():
        since = _state_change(unit, runner)
        for file in request.laid if since else ():
            if tree_of(file.path, request.trees) in trees:
                landed = disk.real(file.path).stat().st_mtime if disk.read(file.path) else 0
                if since < landed <= now:  # not a time to come: then the clock was set back
                    yield file.path


def _by_unit(request: Request) -> dict[str, list[dict[str, t.Any]]]:
    units: dict[str, list[dict[str, t.Any]]] = {}
    for tree in request.trees:
        if tree.get("unit"):
            units.setdefault(tree["unit"], []).append(tree)
    return units


def _state_change(unit: str, runner: Runner) -> float:
    """When an active unit was last started or reloaded, in seconds since 1970; otherwise 0."""
    if not shutil.which("systemctl", path=SEARCH_PATH):
        return 0
    show = ["systemctl", "show", "--property=ActiveState,StateChangeTimestampMonotonic", unit]
    properties = dict(line.split("=", 1) for line in runner(show, "/")[1].splitlines())
    if properties.get("ActiveState") != "active":
        return 0
    booted = time.time() - time.monotonic()
    return booted + int(properties["StateChangeTimestampMonotonic"]) / 1e6


class _Deployment:
    def __init__(self, request: Request, disk: Disk, runner: Runner, check: bool) -> None:
        self._request, self._disk, self._check = request, disk, check
        self._store = Store(disk, request.name)
        # An interrupted landing was validated: it is finished before anything else. Nobody heard
        # of it, so this run reports it too, or a daemon would never be told to reload.
        self._interrupted = self._store.pending() if check else self._store.recover()
        self._earlier = self._interrupted.before if self._interrupted else State()
        self._manifest = self._interrupted.manifest if self._interrupted else self._store.manifest()
        self._stage = _Stage(disk, request.name, runner, check)
        self._stage.remove()  # what a killed run left there
        self._faults: list[str] = []
        self._laid = {file.path: file for file in request.laid}
        self._owned = {*self._manifest.files, *self._earlier.files}
        self._our_dirs = {*self._manifest.dirs, *self._earlier.dirs}
        self._removed = self._owned - set(self._laid)

    def run(self) -> Outcome:
        owners = {path: self._owner(file) for path, file in self._laid.items()}
        wanted: dict[str, File] = {
            path: File(self._request.contents[path], Attributes(int(file.mode, 8), *owners[path]))
            for path, file in self._laid.items()
            if file.source and file.mode
        }
        dirs = self._directories()
        self._find_obstacles()
        if self._faults:
            raise ConfigTreeError("; ".join(dict.fromkeys(self._faults)))
        fingerprint = self._fingerprint()
        if self._settled(fingerprint, wanted, dirs):
            return Outcome()

        skipped: list[list[str]] = []
        if self._request.build or self._request.validate:
            with self._stage.prepared(
                [tree["dest"] for tree in self._request.trees],
                {*self._owned, *self._laid},
                wanted,
            ) as stage:
                wanted.update(self._build(stage, owners, skipped))
                stage.validate(self._request.validate, skipped)
        return self._land(fingerprint, wanted, dirs, skipped)

    # What should be

    def _owner(self, file: Laid) -> tuple[int, int]:
        return (
            self._id("owner", file.owner, file.path),
            self._id("group", file.group, file.path),
        )

    def _id(self, kind: str, name: str, path: str) -> int:
        if name.isdigit():
            return int(name)
        try:
            if kind == "owner":
                return pwd.getpwnam(name).pw_uid
            return grp.getgrnam(name).gr_gid
        except KeyError:
            # Check mode on a host where the package that makes the user isn't installed yet.
            if not self._check:
                self._faults.append(f"{kind} {name!r} of {path} does not exist on this host")
            return -1

    def _directories(self) -> dict[str, Attributes | None]:
        """The directories to make or to put right (attributes) and those to remove (None)."""
        needed = {str(parent) for path in self._laid for parent in Path(path).parents} - {"/"}
        plan: dict[str, Attributes | None] = {}
        for path in sorted(needed):
            if path in self._our_dirs or self._disk.directory(path) is None:
                plan[path] = self._directory_attributes(path)
        for path in sorted(self._our_dirs - needed):
            if self._vanishes(path):
                plan[path] = None
        for path in self._earlier.dirs:
            plan.setdefault(path, self._disk.directory(path))
        return plan

    def _directory_attributes(self, path: str) -> Attributes:
        tree = tree_of(path + "/x", self._request.trees)
        if tree is None:  # above a dest
            return Attributes(0o755, os.geteuid(), os.getegid())
        return Attributes(
            int(tree["dir_mode"], 8),
            self._id("owner", tree["owner"], path),
            self._id("group", tree["group"], path),
        )

    def _vanishes(self, path: str) -> bool:
        """Whether nothing is left below a directory when our own files are gone."""
        real = self._disk.real(path)
        if real.is_symlink() or not real.is_dir():
            return False
        return all(
            self._vanishes(f"{path}/{child.name}")
            if child.is_dir() and not child.is_symlink()
            else f"{path}/{child.name}" in self._removed
            for child in real.iterdir()
        )

    def _find_obstacles(self) -> None:
        for path in self._laid:
            real = self._disk.real(path)
            ours = path in self._our_dirs and self._vanishes(path)
            if real.is_dir() and not real.is_symlink() and not ours:
                self._faults.append(f"{path} is a directory on this host")
            for parent in map(str, Path(path).parents):
                in_the_way = self._disk.directory(parent) is None and self._disk.read(parent)
                if in_the_way and parent not in self._removed:
                    self._faults.append(f"{parent} must be a directory but is a file on this host")

    # What is

    def _fingerprint(self) -> str:
        """Of everything that was validated, so that the same thing is not validated again."""
        request = self._request
        contents = {path: _sha256(content) for path, content in request.contents.items()}
        files = [[f.path, f.owner, f.group, f.mode, contents.get(f.path)] for f in request.laid]
        dests = [tree["dest"] for tree in request.trees]
        data = [files, request.build, request.validate, dests]
        return _sha256(json.dumps(data).encode())

    def _settled(
        self, fingerprint: str, wanted: dict[str, File], dirs: dict[str, Attributes | None]
    ) -> bool:
        manifest = self._manifest
        if self._interrupted or fingerprint != manifest.fingerprint:
            return False
        if set(manifest.files) != set(self._laid):
            return False
        live = {path: self._disk.read(path) for path in self._laid}
        return (
            all(live[path] == file for path, file in wanted.items())
            and all(_record(live[path]) == manifest.files[path] for path in live)
            and all(self._disk.directory(path) == attributes for path, attributes in dirs.items())
        )

    # Doing it

    def _build(
        self, stage: _Stage, owners: dict[str, tuple[int, int]], skipped: list[list[str]]
    ) -> dict[str, File]:
        outputs = {}
        for command in self._request.build:
            ran = stage.build(command, skipped)
            for path in command["creates"]:
                file = stage.output(path) if ran else self._disk.read(path)
                if file is None and ran:
                    raise ConfigTreeError(
                        f"{command['argv'][0]} did not make {path}", argv=command["argv"]
                    )
                if file is None:
                    file = File(_not_built(command), Attributes(0o600, -1, -1))
                mode = self._laid[path].mode
                bits = int(mode, 8) if mode else file.attributes.mode
                outputs[path] = File(file.content, Attributes(bits, *owners[path]))
        return outputs

    def _land(
        self,
        fingerprint: str,
        wanted: dict[str, File],
        dirs: dict[str, Attributes | None],
        skipped: list[list[str]],
    ) -> Outcome:
        paths = sorted({*self._owned, *wanted})
        live = {path: self._disk.read(path) for path in paths}
        before = {**live, **self._earlier.files}
        dirs_before = {**{p: self._disk.directory(p) for p in dirs}, **self._earlier.dirs}
        files = [path for path in paths if before[path] != wanted.get(path)]
        refitted = [
            path for path, old in dirs_before.items() if old and dirs[path] not in (None, old)
        ]
        show = _Differ()
        diff = [show.file(path, before[path], wanted.get(path)) for path in files]
        diff += [show.attributes(path, dirs_before[path], dirs[path]) for path in refitted]

        if not self._check:
            manifest = Manifest(
                fingerprint,
                {path: record for path, file in wanted.items() if (record := _record(file))},
                self._dirs_of_ours(dirs),
            )
            to_do = {p for p in paths if live[p] != wanted.get(p)}
            dirs_to_do = any(self._disk.directory(p) != attr for p, attr in dirs.items())
            if to_do or dirs_to_do:
                keys = sorted(to_do | set(self._earlier.files))
                self._store.land(
                    Landing(
                        before=State({path: before[path] for path in keys}, dirs_before),
                        after=State({path: wanted.get(path) for path in keys}, dirs),
                        manifest=manifest,
                    )
                )
            else:
                self._store.finish(manifest)
        return Outcome(
            changed=bool(files or refitted),
            files=sorted([*files, *refitted]),
            diff=diff,
            skipped_commands=skipped,
            resumed=bool(self._interrupted),
        )

    def _dirs_of_ours(self, dirs: dict[str, Attributes | None]) -> list[str]:
        ours = {*self._manifest.dirs, *(path for path, attributes in dirs.items() if attributes)}
        return sorted(ours - {path for path, attributes in dirs.items() if not attributes})


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _record(file: File | None) -> Record | None:
    if file is None or file.kind != "file":
        return None
    mode, uid, gid = file.attributes
    return Record(_sha256(file.content), f"{mode:04o}", uid, gid)


def _not_built(command: Command) -> bytes:
    return f"(made by {command['argv'][0]}, which is not installed yet)\n".encode()


class _Stage:
    """A private mirror of / in which commands see the configuration as it is going to be."""

    def __init__(self, disk: Disk, name: str, runner: Runner, check: bool) -> None:
        self._disk, self._runner, self._check = disk, runner, check
        # Below /run: a secret that waits there for validation never touches a disk.
        self.root = disk.real(f"{RUN_ROOT}/{name}")

    @contextlib.contextmanager
    def prepared(
        self, dests: list[str], ours: set[str], wanted: dict[str, File]
    ) -> t.Iterator[_Stage]:
        try:
            self.root.mkdir(mode=0o700)
            for dest in set(dests):
                if not any(dest.startswith(f"{other}/") for other in dests):
                    self._mirror(dest, ours, dests)
            for path, file in wanted.items():
                target = self._at(path)
                target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
                _write(target, file)
            yield self
        finally:
            self.remove()

    def remove(self) -> None:
        if self.root.is_dir():
            shutil.rmtree(self.root)

    def _at(self, path: str) -> Path:
        return Path(f"{self.root}{path}")

    def _mirror(self, directory: str, ours: set[str], dests: list[str]) -> None:
        """Copy what isn't ours: a command that writes to its copy can't reach the original."""
        real = self._disk.real(directory)
        target = self._at(directory)
        target.mkdir(mode=0o755, parents=True, exist_ok=True)
        if not real.is_dir():
            return
        for child in real.iterdir():
            path = f"{directory}/{child.name}"
            if path in ours or child.name.endswith(TEMPORARY_SUFFIX):
                continue
            if child.is_dir() and not child.is_symlink():
                self._mirror(path, ours, dests)
            elif file := self._disk.read(path):
                if file.kind == "link":
                    where = self._point(path, os.fsdecode(file.content), dests)
                    self._at(path).symlink_to(where)
                elif file.kind == "file":
                    _write(self._at(path), file)
        status = real.stat()
        os.chown(target, status.st_uid, status.st_gid)
        target.chmod(status.st_mode & 0o7777)

    def _point(self, path: str, where: str, dests: list[str]) -> Path:
        """A link within the mirror stays within it, any other leads to the host's own file."""
        absolute = os.path.normpath(f"{Path(path).parent}/{where}" if where[0] != "/" else where)
        if any(f"{absolute}/".startswith(f"{dest}/") for dest in dests):
            return self._at(absolute)
        return self._disk.real(absolute)

    def output(self, path: str) -> File | None:
        target = self._at(path)
        if not target.is_file():
            return None
        status = target.stat()
        attributes = Attributes(status.st_mode & 0o7777, status.st_uid, status.st_gid)
        return File(target.read_bytes(), attributes)

    def build(self, command: Command, skipped: list[list[str]]) -> bool:
        """Run it; False if check mode finds that its program isn't installed yet."""
        failure = self._run(command, skipped)
        if failure:
            raise ConfigTreeError(**failure)
        return command["argv"] not in skipped

    def validate(self, commands: list[Command], skipped: list[list[str]]) -> None:
        failures = [f for command in commands if (f := self._run(command, skipped))]
        if failures:
            message = "\n".join(failure["message"] for failure in failures)
            raise ConfigTreeError(**{**failures[0], "message": message})

    def _run(self, command: Command, skipped: list[list[str]]) -> dict[str, t.Any] | None:
        argv = [word.replace("{stage}", str(self.root)) for word in command["argv"]]
        if not shutil.which(argv[0], path=SEARCH_PATH):
            if self._check:
                skipped.append(command["argv"])
                return None
            return {"message": f"{argv[0]} is not installed", "argv": command["argv"]}
        rc, stdout, stderr = self._runner(argv, str(self.root))
        noisy = command.get("stderr") == "fail" and stderr.strip() != ""
        if rc == 0 and not noisy:
            return None
        # The administrator knows the files by their real names.
        stdout, stderr = (text.replace(str(self.root), "") for text in (stdout, stderr))
        words = "\n".join(text.strip() for text in (stderr, stdout) if text.strip())
        shown = " ".join(command["argv"]).replace("{stage}", "")
        return {
            "message": f"{shown} refuses the new configuration, nothing was changed"
            f" (rc {rc}): {words or 'it says nothing'}",
            "argv": command["argv"],
            "rc": rc,
            "stdout": stdout,
            "stderr": stderr,
        }


def _write(path: Path, file: File) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
        stream.write(file.content)
        # An owner who doesn't exist yet (-1, in check mode) leaves the file to root.
        os.fchown(stream.fileno(), file.attributes.uid, file.attributes.gid)
        os.fchmod(stream.fileno(), file.attributes.mode)


class _Differ:
    """Before and after, for people; what isn't for everybody's eyes is shown as a fingerprint."""

    def __init__(self) -> None:
        # The key is forgotten: a fingerprint tells equal from unequal in this run, and no more.
        self._key = secrets.token_bytes(32)

    def file(self, path: str, old: File | None, new: File | None) -> dict[str, str]:
        secret = any(f and not f.attributes.mode & 0o004 for f in (old, new))
        attributes = [file.attributes if file else None for file in (old, new)]
        shown = self.attributes(path, *attributes)
        shown["before"] += self._text(old, secret)
        shown["after"] += self._text(new, secret)
        return shown

    def attributes(
        self, path: str, old: Attributes | None, new: Attributes | None
    ) -> dict[str, str]:
        lines = ""
        if old and new:
            for name, was, becomes in zip(old._fields, old, new, strict=True):
                if was != becomes:
                    lines += f"{_NAMES[name]}: {_show(name, was)} → {_show(name, becomes)}\n"
        return {"before_header": path, "after_header": path, "before": "", "after": lines}

    def _text(self, file: File | None, secret: bool) -> str:
        if file is None:
            return ""
        content = file.content
        if file.kind != "file":
            return f"({file.kind} {os.fsdecode(content)})\n"
        if not secret and len(content) <= _LARGEST_DIFF and b"\0" not in content:
            with contextlib.suppress(UnicodeDecodeError):
                return content.decode()
        kind = "secret" if secret else "not text"
        return f"({kind}, HMAC-SHA-256 {hmac.digest(self._key, content, 'sha256').hex()[:16]})\n"


_NAMES = {"mode": "mode", "uid": "owner", "gid": "group"}


def _show(name: str, value: int) -> str:
    if name == "mode":
        return f"{value:04o}"
    if value == -1:
        return "not there yet"
    with contextlib.suppress(KeyError):
        return pwd.getpwuid(value).pw_name if name == "uid" else grp.getgrgid(value).gr_name
    return str(value)
