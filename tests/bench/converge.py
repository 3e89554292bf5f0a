# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) 2026, hikyaku.mail contributors
"""How long a first run and a no-change run take, beside a bare installation of the same packages.

All in one session on fresh hosts, with the packages already in the lab's archive, so that the
ratio does not depend on the network. Run by `make bench`.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LAB = str(ROOT / "molecule" / "shared" / "lab")
PLAYBOOK = ["ansible-playbook", "-i", "inventories/demo", "site.yml"]
PACKAGES = "dpkg-query -W -f '${binary:Package}\\n'"


def timed(*argv: str) -> tuple[float, str]:
    start = time.monotonic()
    done = subprocess.run(
        argv,
        cwd=ROOT,
        text=True,
        capture_output=True,
        check=False,
        env={**os.environ, "ANSIBLE_NOCOLOR": "1"},
    )
    if done.returncode:
        raise SystemExit(f"{shlex.join(argv)} failed:\n{done.stdout}{done.stderr}")
    return time.monotonic() - start, done.stdout


def on_host(command: str) -> tuple[float, str]:
    return timed(LAB, "enter", "mx1", "sh", "-c", command)


def recap(output: str) -> str:
    line = re.search(r"^mx1 .*?(ok=\d+)\s+(changed=\d+)", output, re.MULTILINE)
    return " ".join(line.groups()) if line else "no recap"


def main() -> None:
    timed(LAB, "reset", "mx1")
    before = set(on_host(PACKAGES)[1].split())
    timed(*PLAYBOOK)  # fills the archive and tells which packages belong to a mail host
    packages = sorted(set(on_host(PACKAGES)[1].split()) - before)

    timed(LAB, "reset", "mx1")
    install = (
        "apt-get update -q && DEBIAN_FRONTEND=noninteractive "
        f"apt-get install -q -y --no-install-recommends {shlex.join(packages)}"
    )
    bare = on_host(install)[0]

    timed(LAB, "reset", "mx1")
    first, first_output = timed(*PLAYBOOK)
    again, again_output = timed(*PLAYBOOK)

    print(f"bare installation of {len(packages)} packages: {bare:.1f} s")
    print(f"first run: {first:.1f} s, {first / bare:.2f} times that; {recap(first_output)}")
    print(f"no-change run: {again:.1f} s; {recap(again_output)}")


if __name__ == "__main__":
    main()
