# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) 2026, hikyaku.mail contributors
"""Small tools: commands, files, waiting."""

from __future__ import annotations

import fcntl
import hashlib
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lablib.layout import RUN


class LabError(Exception):
    """Something that the person at the keyboard has to know."""


def run(*argv: str | Path, env: dict[str, str] | None = None) -> str:
    """Run a command, return its output; its own words are the error if it fails."""
    done = subprocess.run([str(word) for word in argv], text=True, capture_output=True, env=env)
    if done.returncode:
        words = (done.stderr or done.stdout).strip()
        raise LabError(f"{shlex.join(str(word) for word in argv)}: {words}")
    return done.stdout.strip()


def podman(*argv: str | Path) -> str:
    return run("podman", *argv)


def exists(kind: str, name: str) -> bool:
    return subprocess.run(["podman", kind, "exists", name]).returncode == 0


def say(text: str) -> None:
    print(f"lab: {text}", file=sys.stderr, flush=True)


def write(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


def digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def poll(what: str, seconds: float, attempt: Callable[[], bytes]) -> bytes:
    """Repeat `attempt` until it neither returns nothing nor raises OSError."""
    limit = time.monotonic() + seconds
    while True:
        try:
            if result := attempt():
                return result
            error = OSError("no answer")
        except OSError as exc:
            error = exc
        if time.monotonic() > limit:
            raise LabError(f"waited {seconds:.0f} s for {what}: {error}")
        time.sleep(0.2)


@contextmanager
def locked() -> Iterator[None]:
    """One change at a time; a second `lab up` waits, then finds everything made."""
    RUN.mkdir(exist_ok=True)
    with (RUN / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
