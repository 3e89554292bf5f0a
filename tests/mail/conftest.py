# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) 2026, hikyaku.mail contributors
"""What every protocol test shares: the lab's hosts, its accounts, its trust, and Ansible runs."""

from __future__ import annotations

import json
import os
import re
import ssl
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import testinfra
import yaml
from testinfra.host import Host

ROOT = Path(__file__).resolve().parents[2]
LAB = ROOT / ".cache" / "lab"
INVENTORY = ROOT / "inventories" / "demo"


@dataclass(frozen=True)
class MailHost:
    """The mail host under test, as seen from outside."""

    name: str
    ipv4: str
    ipv6: str


@dataclass(frozen=True)
class Run:
    """One finished ansible-playbook run against the mail host."""

    returncode: int
    output: str
    seconds: float

    def count(self, what: str) -> int:
        """A figure of the mail host's recap line: ok, changed, failed, skipped, ..."""
        recap = re.search(rf"^mx1 .*\b{what}=(\d+)", self.output, re.MULTILINE)
        assert recap, self.output
        return int(recap[1])


def lab_host(name: str) -> Host:
    return testinfra.get_host(f"ssh://{name}", ssh_config=str(LAB / "ssh_config"))


@pytest.fixture(scope="session")
def host() -> Host:
    """The mail host, from inside."""
    return lab_host("mx1")


@pytest.fixture(scope="session")
def internet() -> Host:
    """The host that plays everybody else."""
    return lab_host("internet")


@pytest.fixture(scope="session")
def client() -> Host:
    """A host with several addresses and no privileges."""
    return lab_host("client")


@pytest.fixture(scope="session")
def mx1() -> MailHost:
    name = "mx1.example.test"
    lab = json.loads((LAB / "lab.json").read_text())
    return MailHost(name, lab["address4"][name], lab["address6"][name])


@pytest.fixture(scope="session")
def accounts() -> dict[str, str]:
    """Addresses of the demo inventory and their passwords."""
    variables = yaml.safe_load((INVENTORY / "group_vars" / "mail.yml").read_text())
    passwords: dict[str, str] = variables["demo_passwords"]
    return passwords


@pytest.fixture(scope="session")
def tls() -> ssl.SSLContext:
    """A client that trusts the lab's certificate authority and nobody else."""
    return ssl.create_default_context(cafile=str(LAB / "acme-root.pem"))


@pytest.fixture(scope="session")
def run_playbook() -> Callable[..., Run]:
    """Run a playbook against the demo inventory: run_playbook("site.yml", "--check")."""

    def run(playbook: str, *arguments: str) -> Run:
        start = time.monotonic()
        done = subprocess.run(
            ["ansible-playbook", "-i", str(INVENTORY), playbook, *arguments],
            cwd=ROOT,
            env={
                **os.environ,
                "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
                "ANSIBLE_FORCE_COLOR": "0",
                "ANSIBLE_NOCOLOR": "1",
            },
            text=True,
            capture_output=True,
            check=False,
        )
        return Run(done.returncode, done.stdout + done.stderr, time.monotonic() - start)

    return run
