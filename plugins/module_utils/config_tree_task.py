# Copyright: (c) 2026, hikyaku.mail contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The task on the controller: which file of which tree becomes which file on the host."""

from __future__ import annotations

import base64
import dataclasses
import fnmatch
import json
import os
import re
import typing as t
import zlib
from pathlib import Path

_RULE = {
    "path": {"type": "str", "required": True},
    "owner": {"type": "str"},
    "group": {"type": "str"},
    "mode": {"type": "str"},
    "when": {"type": "bool", "default": True},
}
_TREE = {
    "src": {"type": "str", "required": True},
    "dest": {"type": "str", "required": True},
    "owner": {"type": "str", "default": "root"},
    "group": {"type": "str", "default": "root"},
    "mode": {"type": "str", "default": "0644"},
    "dir_mode": {"type": "str", "default": "0755"},
    "unit": {"type": "str"},
    "files": {"type": "list", "elements": "dict", "default": [], "options": _RULE},
}
_ARGV: dict[str, t.Any] = {"type": "list", "elements": "str", "required": True}
_BUILD = {
    "argv": _ARGV,
    "creates": {"type": "list", "elements": "str", "required": True},
}
_VALIDATE = {
    "argv": _ARGV,
    "stderr": {"type": "str", "choices": ["ignore", "fail"], "default": "ignore"},
}
ARGUMENT_SPEC: dict[str, t.Any] = {
    "name": {"type": "str", "required": True},
    "trees": {"type": "list", "elements": "dict", "required": True, "options": _TREE},
    "build": {"type": "list", "elements": "dict", "default": [], "options": _BUILD},
    "validate": {"type": "list", "elements": "dict", "default": [], "options": _VALIDATE},
    "content": {"type": "str", "no_log": True},
}

_MODE = re.compile(r"0[0-7]{3}")
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")

Command = dict[str, t.Any]


@dataclasses.dataclass(frozen=True)
class Laid:
    """One file on the host. Without a source it is an output of a build command."""

    path: str
    owner: str
    group: str
    mode: str | None  # None: as the build command leaves it
    source: str = ""


def list_tree(directory: Path) -> list[str]:
    """The files of a tree, relative to it."""
    found = (path for path in directory.rglob("*") if path.is_file())
    return sorted(str(path.relative_to(directory)) for path in found)


def _matches(path: str, pattern: str) -> bool:
    names, globs = path.split("/"), pattern.split("/")
    pairs = zip(names, globs, strict=False)
    return len(names) == len(globs) and all(fnmatch.fnmatchcase(*pair) for pair in pairs)


def _is_plain(path: str) -> bool:
    return path.startswith("/") and os.path.normpath(path) == path and path.strip("/") != ""


def resolve(
    name: str,
    trees: list[dict[str, t.Any]],
    sources: list[Path | None],
    build: list[Command],
    validate: list[Command],
) -> tuple[list[Laid], list[str]]:
    """The files to lay, and everything that is wrong with the task's parameters."""
    faults: list[str] = []
    if not _NAME.fullmatch(name):
        faults.append(f"name: {name!r} must be lower case letters, digits, '-' and '_'")
    for option, command in [("build", b) for b in build] + [("validate", v) for v in validate]:
        # A command that does not look at the stage would approve of anything.
        if not any("{stage}" in word for word in command["argv"]):
            faults.append(f"{option}: {command['argv']} does not mention {{stage}}")
    laid: list[Laid] = []
    outputs = [(i, path) for i, command in enumerate(build) for path in command["creates"]]
    for i, path in outputs:
        if tree_of(path, trees) is None:
            faults.append(f"build[{i}].creates: {path!r} must be an absolute path below a dest")
    for number, (tree, source) in enumerate(zip(trees, sources, strict=True)):
        here, dest = f"trees[{number}]", tree["dest"]
        for option in ("mode", "dir_mode"):
            _check_mode(f"{here}.{option}", tree[option], faults)
        if not _is_plain(dest):
            faults.append(f"{here}.dest: {dest!r} must be an absolute, normalised path, not /")
        if source is None:
            faults.append(f"{here}.src: no directory {tree['src']!r} under templates/")
        used: set[int] = set()
        for relative in list_tree(source) if source else []:
            target = relative.removesuffix(".j2")
            rule = _rule(tree, target, used)
            if rule.get("when", True):
                laid.append(_lay(f"{dest}/{target}", tree, rule, f"{source}/{relative}"))
        for _i, path in outputs:
            if tree_of(path, trees) is tree:
                rule = _rule(tree, path[len(dest) + 1 :], used)
                laid.append(_lay(path, {**tree, "mode": None}, rule))
        for i, rule in enumerate(tree["files"]):
            _check_mode(f"{here}.files[{i}].mode", rule["mode"], faults)
            # A rule is often there to keep a secret secret: a slip in its path must not pass.
            if source and i not in used:
                faults.append(f"{here}.files[{i}].path: {rule['path']!r} is no file of the tree")
    return laid, faults + _collisions(laid)


def _check_mode(where: str, mode: str | None, faults: list[str]) -> None:
    if mode is not None and not _MODE.fullmatch(mode):
        faults.append(f"{where}: {mode!r} must be a string of four octal digits such as '0644'")


def tree_of(path: str, trees: list[dict[str, t.Any]]) -> dict[str, t.Any] | None:
    """The tree with the deepest dest above a path."""
    above = [tree for tree in trees if path.startswith(tree["dest"] + "/")]
    return max(above, key=lambda tree: len(tree["dest"]), default=None) if _is_plain(path) else None


def _rule(tree: dict[str, t.Any], relative: str, used: set[int]) -> dict[str, t.Any]:
    for i, rule in enumerate(tree["files"]):
        if _matches(relative, rule["path"]):
            used.add(i)
            return t.cast("dict[str, t.Any]", rule)
    return {}


def _lay(path: str, tree: dict[str, t.Any], rule: dict[str, t.Any], source: str = "") -> Laid:
    owner, group, mode = (rule.get(key) or tree[key] for key in ("owner", "group", "mode"))
    return Laid(path, owner, group, mode, source)


def _collisions(laid: list[Laid]) -> list[str]:
    by_path: dict[str, list[str]] = {}
    for file in laid:
        by_path.setdefault(file.path, []).append(file.source or "build")
    faults = [
        f"{path} is laid more than once: by {' and by '.join(sources)}"
        for path, sources in by_path.items()
        if len(sources) > 1
    ]
    directories = {str(parent) for path in by_path for parent in Path(path).parents}
    faults += [f"{p} is both a file and a directory" for p in by_path if p in directories]
    return faults


def pack(laid: list[Laid], contents: dict[str, bytes]) -> str:
    """One string for the journey. Being one, it can be kept from logs as a whole, and nothing
    that it holds (a password, say) makes Ansible mask the same words in a result."""
    files = [
        {**dataclasses.asdict(file), "content": base64.b64encode(contents[file.path]).decode()}
        if file.source
        else dataclasses.asdict(file)
        for file in laid
    ]
    return base64.b64encode(zlib.compress(json.dumps(files).encode())).decode()


def unpack(content: str) -> tuple[list[Laid], dict[str, bytes]]:
    laid, contents = [], {}
    for entry in json.loads(zlib.decompress(base64.b64decode(content))):
        if "content" in entry:
            contents[entry["path"]] = base64.b64decode(entry.pop("content"))
        laid.append(Laid(**entry))
    return laid, contents
