# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) 2026, hikyaku.mail contributors
"""The other supported ansible-core: a Debian 13 host of the lab is the controller."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from ansible.release import __version__ as here

ROOT = Path(__file__).resolve().parents[3]
LAB = str(ROOT / "molecule" / "shared" / "lab")
OTHER = "2.21.5" if here.startswith("2.19.") else "2.19.14"
CONTROL = "/run/hikyaku-lab"  # where the lab's SSH settings keep connections
DEBIAN_13_PYTHON = "3.13"
NEEDED = ("ansible.cfg", "site.yml", "playbooks", "plugins", "roles", "inventories", "meta")


def in_client(script: str, **options) -> subprocess.CompletedProcess[str]:
    argv = [LAB, "enter", "client", "sh", "-ec", script]
    return subprocess.run(argv, text=True, capture_output=True, check=False, **options)


@pytest.fixture(scope="module")
def controller(tmp_path_factory) -> None:
    """ansible-core, as wheels since the lab reaches no index, and this checkout on the client.

    It lies at the same path there, since the lab's SSH settings name their files by it.
    """
    wheels = tmp_path_factory.mktemp("wheels")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:"]
    target = ["--python-version", DEBIAN_13_PYTHON, "--dest", str(wheels)]
    subprocess.run([*pip, *target, f"ansible-core=={OTHER}"], check=True)
    archive = ["tar", "-C", str(ROOT), "-c", *NEEDED, ".collections", ".cache/lab"]
    archive += ["-C", str(wheels.parent), wheels.name]
    with subprocess.Popen(archive, stdout=subprocess.PIPE) as tar:
        done = in_client(
            f"rm -rf {ROOT}; mkdir -p {ROOT} {CONTROL}; cd {ROOT}; tar -x; "
            "apt-get update -q; apt-get install -q -y --no-install-recommends"
            " python3-venv openssh-client; "
            "python3 -m venv venv; "
            f"venv/bin/pip install --quiet --no-index --find-links {wheels.name} ansible-core",
            stdin=tar.stdout,
        )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.usefixtures("controller")
@pytest.mark.parametrize("arguments", ["", "--check --diff"])
def test_no_change_and_no_warning_with_the_other_ansible_core(arguments):
    done = in_client(
        f"cd {ROOT}; export ANSIBLE_NOCOLOR=1; "
        f"venv/bin/ansible-playbook -i inventories/demo site.yml {arguments}"
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    assert re.search(r"^mx1 .*changed=0 ", output, re.MULTILINE), output
    assert "[DEPRECATION WARNING]" not in output
    assert "[WARNING]" not in output
