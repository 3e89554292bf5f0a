# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) 2026, hikyaku.mail contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Files of private DKIM keys, in bulk: decide for all, then make, then land one by one.

A key that mail is signed with and that is in the DNS is never lost by mistake: what may happen to
one that does not fit is said by `regenerate`, and each file is replaced whole or not at all.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from . import names, txt
from .dkim import (
    DEFAULT_FORMAT,
    DkimError,
    Format,
    KeyType,
    PublicKey,
    Record,
    convert_private_key,
    generate_private_key,
    read_private_key,
    record_name,
    record_text,
)

Action = Literal["keep", "create", "replace", "convert", "remove"]
REGENERATE = ("never", "fail", "partial_idempotence", "full_idempotence", "always")

_SELECTOR = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)(?:\.(?!-)[a-z0-9-]{1,63}(?<!-))*")


@dataclass(frozen=True, slots=True)
class Spec:
    """A key that is wanted, with the tags that its record shall have."""

    domain: str
    selector: str
    path: str
    type: KeyType
    bits: int
    format: Format
    record: Record

    @property
    def name(self) -> str:
        return record_name(self.domain, self.selector)

    def text(self, public: PublicKey) -> str:
        return record_text(replace(self.record, k=public.type, p=public.data))


@dataclass(frozen=True, slots=True)
class Access:
    """Owner, group and permissions of a key file; -1 leaves an owner or a group as it is."""

    uid: int
    gid: int
    mode: int

    @classmethod
    def of(cls, path: str) -> Access:
        status = Path(path).stat()
        return cls(status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode))

    def over(self, old: Access) -> Access:
        uid, gid = (old.uid if self.uid < 0 else self.uid), (old.gid if self.gid < 0 else self.gid)
        return Access(uid, gid, self.mode)


@dataclass(frozen=True, slots=True)
class Step:
    """What shall become of one key file, and what it is now."""

    spec: Spec
    action: Action
    public: PublicKey | None = None
    access: Access | None = None


def read_specs(
    keys: Sequence[Mapping[str, Any]],
    domains: Sequence[str],
    selectors: Sequence[Mapping[str, Any]],
    path_template: str | None,
) -> tuple[list[Spec], list[str]]:
    """All wanted keys, in order, and every fault."""
    wanted = [("keys", key) for key in keys]
    wanted += [("domains", {"domain": d, **selector}) for d in domains for selector in selectors]
    specs: list[Spec] = []
    faults: list[str] = []
    if domains and not selectors:
        faults.append("selectors: nothing; allowed: at least one, since there are domains")
    taken: set[str] = set()
    for source, key in wanted:
        try:
            spec = _read_spec(key, path_template)
        except (ValueError, KeyError) as error:
            faults.append(f"{source}: {key.get('domain')} {key.get('selector')}: {error}")
            continue
        faults += [f"{source}: {one} twice" for one in (spec.name, spec.path) if one in taken]
        taken |= {spec.name, spec.path}
        specs.append(spec)
    return specs, faults


def _read_spec(key: Mapping[str, Any], path_template: str | None) -> Spec:
    type_: KeyType = key.get("type") or "rsa"
    selector = str(key["selector"]).lower()
    if not _SELECTOR.fullmatch(selector):
        raise ValueError("a selector is letters, digits and inner hyphens, with dots between them")
    domain = names.host_name(str(key["domain"]))
    path = key.get("path") or (path_template or "").format(domain=domain, selector=selector)
    if not path.startswith("/"):
        raise ValueError("an absolute path is needed, from path or path_template")
    format_ = key.get("format") or DEFAULT_FORMAT[type_]
    if (format_, type_) in (("pkcs1", "ed25519"), ("ed25519_seed", "rsa")):
        raise ValueError(f"format {format_} is not for type {type_}")
    tags = key.get("record") or {}
    h, s, t = (tuple(tags[tag]) if tags.get(tag) else None for tag in ("h", "s", "t"))
    record = Record(b"", h=h, s=s, t=t, n=tags.get("n"))
    bits = 256 if type_ == "ed25519" else int(key.get("bits") or 2048)
    return Spec(domain, selector, path, type_, bits, format_, record)


def plan(spec: Spec, regenerate: str, *, present: bool = True) -> Step:
    """Decide what to do; raises DkimError where `regenerate` forbids it."""
    path = Path(spec.path)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return Step(spec, "create" if present else "keep")
    access = Access.of(spec.path)
    try:
        public = read_private_key(content)
    except DkimError as error:
        if not present:
            return Step(spec, "remove", None, access)
        if regenerate in ("full_idempotence", "always"):
            return Step(spec, "replace", None, access)
        raise DkimError(
            f"{path}: {error}; allowed: a readable key, or regenerate: full_idempotence, "
            "which replaces it"
        ) from None
    action: Action = "keep"
    if not present:
        action = "remove"
    elif regenerate == "always":
        action = "replace"
    elif regenerate != "never" and (public.type, public.bits) != (spec.type, spec.bits):
        if regenerate == "fail":
            raise DkimError(
                f"{path}: is {public.type} with {public.bits} bits; allowed: {spec.type} with "
                f"{spec.bits} bits, or regenerate: partial_idempotence, which replaces it"
            )
        action = "replace"
    elif regenerate != "never" and public.format != spec.format:
        action = "convert"
    return Step(spec, action, public, access)


def make(step: Step) -> bytes | None:
    """The new content of a key file, if it gets one. This is what takes time."""
    spec = step.spec
    if step.action in ("create", "replace"):
        return generate_private_key(spec.type, spec.bits, spec.format)
    if step.action == "convert":
        return convert_private_key(Path(spec.path).read_bytes(), spec.format)
    return None


def land(step: Step, content: bytes | None, access: Access, *, backup: bool) -> str | None:
    """Bring the file to its new state; returns the path of a backup, if one was made."""
    path = Path(step.spec.path)
    kept = None
    if backup and step.action in ("replace", "convert", "remove"):
        # Named by its content: no second run makes another one, none is ever overwritten.
        kept = f"{path}.{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}.bak"
        if not Path(kept).exists():
            os.link(path, kept)
    if step.action == "remove":
        path.unlink()
        _sync_directory(path.parent)
    elif content is not None:
        _write(path, content, access.over(step.access) if step.access else access, step.action)
    elif step.access is not None and access.over(step.access) != step.access:
        os.chown(path, access.uid, access.gid)
        path.chmod(access.mode)
    return kept


def _write(path: Path, content: bytes, access: Access, action: Action) -> None:
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)  # left by a run that was killed
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        os.fchown(descriptor, access.uid, access.gid)
        os.fchmod(descriptor, access.mode)
        file.write(content)
        file.flush()
        os.fsync(descriptor)
    if action == "create":
        os.link(new, path)  # fails if somebody else has made one meanwhile
        new.unlink()
    else:
        new.replace(path)
    _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclass
class Result:
    """What a run did, as far as it came."""

    keys: list[dict[str, Any]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    before: list[str] = field(default_factory=list)
    after: list[str] = field(default_factory=list)

    @property
    def changed(self) -> bool:
        return any(key["changed"] for key in self.keys)


def ensure_keys(
    specs: Sequence[Spec],
    access: Access,
    *,
    regenerate: str = "fail",
    present: bool = True,
    backup: bool = False,
    threads: int = 0,
    dry_run: bool = False,
) -> Result:
    """Bring all key files to the wanted state. A fault found beforehand stops it all."""
    result = Result()
    steps = []
    for spec in specs:
        try:
            steps.append(plan(spec, regenerate, present=present))
        except (DkimError, OSError) as error:
            result.faults.append(str(error))
    if result.faults:
        return result
    try:
        for step, content in _contents(steps, threads, dry_run=dry_run):
            kept = None if dry_run else land(step, content, access, backup=backup)
            _report(result, step, content, access, kept)
    except (DkimError, OSError) as error:
        result.faults.append(str(error))
    return result


def _contents(
    steps: Sequence[Step], threads: int, *, dry_run: bool
) -> Iterator[tuple[Step, bytes | None]]:
    """Each step with its new content, which threads make while earlier ones land."""
    if dry_run:
        yield from ((step, None) for step in steps)
        return
    with ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
        yield from zip(steps, pool.map(make, steps), strict=True)


def _report(
    result: Result, step: Step, content: bytes | None, access: Access, kept: str | None
) -> None:
    spec, created = step.spec, step.action in ("create", "replace")
    public = None if created or step.action == "remove" else step.public
    if content is not None:
        public = read_private_key(content)
    elif step.action == "convert" and public is not None:
        public = replace(public, format=spec.format)
    now = access.over(step.access or Access(os.geteuid(), os.getegid(), access.mode))
    absent = step.action == "remove" or (step.action == "keep" and step.access is None)
    changed = step.action != "keep" or (not absent and now != step.access)
    text = spec.text(public) if public else None
    key = {
        "domain": spec.domain,
        "selector": spec.selector,
        "name": spec.name,
        "path": spec.path,
        "type": public.type if public else spec.type,
        "bits": public.bits if public else spec.bits,
        "txt": text,
        "strings": txt.split(text) if text else [],
        "fingerprint_sha256": public.fingerprint if public else None,
        "created": created,
        "changed": changed,
    }
    result.keys.append(key | ({"backup_file": kept} if kept else {}))
    if changed and step.access is not None:
        result.before.append(_line(spec, step.public, step.access))
    if changed and not absent:
        result.after.append(_line(spec, public, now))


def _line(spec: Spec, public: PublicKey | None, access: Access) -> str:
    record = f"IN TXT {txt.to_zone(txt.split(spec.text(public)))} " if public else ""
    form = public.format if public else "key data not known"
    owner = f"{access.uid}:{access.gid} {access.mode:04o}"
    return f"{spec.name}. {record}; {spec.path} {form} {owner}\n"


# What is there


@dataclass
class Inventory:
    """The key files that are there, and what cannot be read of them."""

    keys: list[dict[str, Any]]
    shared: list[dict[str, Any]]
    faults: list[str]


def find_keys(patterns: Sequence[str], path_template: str | None, now: float) -> Inventory:
    """Tell of all key files that the patterns, or the template, match."""
    found = Inventory([], [], [])
    by_fingerprint: dict[str, list[str]] = {}
    if not patterns and path_template:
        patterns = [path_template.format(domain="*", selector="*")]
    whose = _template_pattern(path_template) if path_template else None
    root = Path("/")
    for path in sorted({str(file) for each in patterns for file in root.glob(each.lstrip("/"))}):
        try:
            public = read_private_key(Path(path).read_bytes())
            age = now - Path(path).stat().st_mtime
        except (DkimError, OSError) as error:
            found.faults.append(f"{path}: {error}")
            continue
        text = record_text(Record(public.data, k=public.type))
        match = whose.fullmatch(path) if whose else None
        domain, selector = (match["domain"], match["selector"]) if match else (None, None)
        found.keys.append(
            {
                "domain": domain,
                "selector": selector,
                "name": record_name(domain, selector) if domain and selector else None,
                "path": path,
                "type": public.type,
                "bits": public.bits,
                "format": public.format,
                "txt": text,
                "strings": txt.split(text),
                "fingerprint_sha256": public.fingerprint,
                "age_days": max(0, int(age // 86400)),
            }
        )
        by_fingerprint.setdefault(public.fingerprint, []).append(path)
    found.shared = [
        {"fingerprint_sha256": fingerprint, "paths": paths}
        for fingerprint, paths in by_fingerprint.items()
        if len(paths) > 1
    ]
    return found


def _template_pattern(template: str) -> re.Pattern[str]:
    """What finds domain and selector in a path, where the selector has no dot."""
    pattern = re.escape(template)
    for name, characters in (("domain", "[^/]+"), ("selector", "[^/.]+")):
        place = re.escape(f"{{{name}}}")
        pattern = pattern.replace(place, f"(?P<{name}>{characters})", 1)
        pattern = pattern.replace(place, f"(?P={name})")
    return re.compile(pattern)
