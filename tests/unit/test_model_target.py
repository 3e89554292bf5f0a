# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) 2026, hikyaku.mail contributors
from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest
from ansible_collections.hikyaku.mail.plugins.module_utils import target

TRIXIE = 'PRETTY_NAME="Debian GNU/Linux 13 (trixie)"\nVERSION_ID="13"\nID=debian\n'
BOOKWORM = TRIXIE.replace("13", "12").replace("trixie", "bookworm")
UBUNTU = 'PRETTY_NAME="Ubuntu 24.04.1 LTS"\nID=ubuntu\nID_LIKE=debian\nVERSION_ID="24.04"\n'
SID = 'PRETTY_NAME="Debian GNU/Linux forky/sid"\nID=debian\n'


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A host's file system: 2 GiB of memory, nobody listens."""
    for directory in ("proc/net", "sys/fs/cgroup"):
        (tmp_path / directory).mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal:        2097152 kB\nMemFree: 1 kB\n")
    (tmp_path / "proc/net/tcp").write_text("  sl  local_address rem_address   st\n")
    return tmp_path


def listen(root: Path, table: str, local: str, inode: int, state: str = "0A") -> None:
    path = root / "proc/net" / table
    header = "" if path.exists() else "  sl  local_address\n"
    with path.open("a") as stream:
        stream.write(
            f"{header}   0: {local} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000"
            f"     0        0 {inode} 1 0000000000000000 100 0 0 10 0\n"
        )


def process(root: Path, pid: int, program: str, inode: int, unit: str = "") -> None:
    descriptors = root / "proc" / str(pid) / "fd"
    descriptors.mkdir(parents=True)
    (descriptors / "3").symlink_to(f"socket:[{inode}]")
    (descriptors / "1").symlink_to("/dev/null")
    (descriptors.parent / "comm").write_text(f"{program}\n")
    if unit:
        (descriptors.parent / "cgroup").write_text(f"0::/system.slice/{unit}\n")


@pytest.mark.parametrize(
    ("os_release", "found"),
    [
        (TRIXIE, None),
        (TRIXIE.replace('"', ""), None),
        (BOOKWORM, "Debian GNU/Linux 12 (bookworm) (not yet supported)"),
        (UBUNTU, "Ubuntu 24.04.1 LTS"),
        (SID, "Debian GNU/Linux forky/sid"),
        ("", "an unknown system"),
    ],
)
def test_release(os_release: str, found: str | None) -> None:
    faults = target.check_release(os_release, ["13"])
    assert [(fault.path, fault.value, fault.allowed) for fault in faults] == (
        [("release", found, "Debian 13")] if found else []
    )


@pytest.mark.parametrize(
    ("limit", "text", "mib"),
    [
        ("", "", 2048),
        ("memory.max", "max", 2048),
        ("memory.max", "536870912", 512),
        ("memory.max", "9223372036854771712", 2048),
        ("memory/memory.limit_in_bytes", "805306368", 768),
    ],
)
def test_memory_of_machine_or_container(root: Path, limit: str, text: str, mib: int) -> None:
    if limit:
        (root / "sys/fs/cgroup" / limit).parent.mkdir(exist_ok=True)
        (root / "sys/fs/cgroup" / limit).write_text(f"{text}\n")
    assert target.check_memory(root, mib) == []
    (fault,) = target.check_memory(root, mib + 1)
    assert (fault.path, fault.value) == ("memory", f"{mib} MiB")
    assert fault.allowed == f"at least {mib + 1} MiB (min_memory_mib)"


def test_disk() -> None:
    assert target.check_disk("/", 0) == []
    (fault,) = target.check_disk("/", 1 << 40)
    assert fault.path == "free space of /" and "min_disk_mib" in fault.allowed


@pytest.mark.parametrize(
    ("offset", "found"), [(0, ""), (59, ""), (-59, ""), (120, "behind"), (-120, "ahead of")]
)
def test_clock(offset: int, found: str) -> None:
    faults = target.check_clock(time.time() + offset, 60)
    assert [fault.value for fault in faults] == (
        [f"120 s {found} the controller's"] if found else []
    )


def test_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert target.check_name("127.0.0.1") == []
    (fault,) = target.check_name("a..b")
    assert fault.path == "name" and fault.value.startswith("'a..b'")

    def fail(*_args: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    (fault,) = target.check_name("mx1.example.com")
    assert "not known" in fault.value


@pytest.mark.parametrize("table", ["tcp", "tcp6"])
def test_a_port_held_by_another_program(root: Path, table: str) -> None:
    address = "00000000" if table == "tcp" else "0" * 32
    listen(root, table, f"{address}:0019", 4711)
    process(root, 812, "exim4", 4711, "exim4.service")
    (fault,) = target.check_ports(root, [25, 587])
    assert str(fault) == (
        "port 25: held by exim4 (pid 812); allowed: nobody but master: "
        "systemctl disable --now exim4.service"
    )
    assert target.check_ports(root, [587]) == []


@pytest.mark.parametrize(
    ("port", "program"),
    [(25, "master"), (53, "unbound"), (80, "nginx"), (80, "certbot"), (993, "dovecot")],
)
def test_a_port_that_we_hold_already(root: Path, port: int, program: str) -> None:
    listen(root, "tcp", f"0100007F:{port:04X}", 4711)
    process(root, 812, program, 4711, "ours.service")
    # A login process has inherited the socket from its master.
    process(root, 811, "imap-login", 4711, "ours.service")
    assert target.check_ports(root, [port]) == []


@pytest.mark.parametrize(
    ("table", "local", "state", "in_the_way"),
    [
        ("tcp", "0100007F", "0A", True),  # 127.0.0.1
        ("udp", "0100007F", "07", True),
        ("tcp", "00000000", "0A", True),  # 0.0.0.0
        ("udp6", "00000000000000000000000001000000", "07", True),  # ::1
        ("tcp6", "0" * 32, "0A", True),  # ::
        ("tcp", "3500007F", "0A", False),  # 127.0.0.53: systemd-resolved
        ("tcp", "0A6433C6", "0A", False),  # 198.51.100.10: an authoritative server
        ("tcp", "0100007F", "01", False),  # a connection, not a listener
    ],
)
def test_the_resolver_needs_the_loopback_only(
    root: Path, table: str, local: str, state: str, in_the_way: bool
) -> None:
    listen(root, table, f"{local}:0035", 4711, state)
    process(root, 812, "named", 4711)
    assert bool(target.check_ports(root, [53])) == in_the_way
    assert target.check_ports(root, [25]) == []


def test_what_holds_a_port_may_be_hidden_or_systemd(root: Path) -> None:
    listen(root, "tcp", "00000000:0019", 1)
    listen(root, "tcp", "00000000:008F", 2)
    listen(root, "tcp", "00000000:1F90", 3)
    process(root, 1, "systemd", 2, "init.scope")
    process(root, 99, "python3", 3, "session-1.scope")
    hidden, systemd, other = target.check_ports(root, [25, 143, 8080])
    assert hidden.value == "held by an unknown program"
    assert systemd.value == "held by systemd (pid 1)" and "list-sockets" in systemd.allowed
    assert other.allowed.startswith("nobody: stop that program")


def test_a_real_listener_is_found() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        (fault,) = target.check_ports(Path("/"), [port])
        assert f"(pid {os.getpid()})" in fault.value


def test_packages_are_those_that_are_installed(root: Path) -> None:
    (root / "var/lib/dpkg").mkdir(parents=True)
    (root / "var/lib/dpkg/status").write_text(
        "Package: postfix\nStatus: install ok installed\nVersion: 3.10.13-0+deb13u1\n"
        "Description: mail server\n Package: not a field\n\n"
        "Package: exim4\nStatus: deinstall ok config-files\nVersion: 4.98\n\n"
        "Package: knot\nStatus: hold ok installed\nVersion: 3.4.6-1\n"
    )
    assert target.packages(root) == {"postfix": "3.10.13-0+deb13u1", "knot": "3.4.6-1"}


def test_a_host_without_dpkg_has_no_packages(root: Path) -> None:
    assert target.packages(root) == {}
