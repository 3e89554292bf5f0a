# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) 2026, hikyaku.mail contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Whether a host can become a mail host: read from /proc, os-release, dpkg and statvfs."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.hikyaku.mail.plugins.module_utils.model import Fault

# Who may hold a port on a host that we provisioned before.
OWNERS = {
    25: ("master",),
    53: ("unbound",),
    80: ("nginx", "certbot"),
    110: ("dovecot",),
    143: ("dovecot",),
    443: ("nginx",),
    465: ("master",),
    587: ("master",),
    993: ("dovecot",),
    995: ("dovecot",),
    4190: ("dovecot",),
}
# The resolver listens here only; an authoritative server beside it has other addresses.
RESOLVER_PORT = 53
_LISTENS = {"tcp": "0A", "tcp6": "0A", "udp": "07", "udp6": "07"}  # enum in net/tcp_states.h


@dataclass(frozen=True, slots=True)
class Listener:
    address: ipaddress.IPv4Address | ipaddress.IPv6Address
    port: int
    inode: str


def check_release(os_release: str, releases: Sequence[str]) -> list[Fault]:
    fields = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', os_release, re.MULTILINE))
    if fields.get("ID") == "debian" and fields.get("VERSION_ID") in releases:
        return []
    found = fields.get("PRETTY_NAME") or fields.get("ID") or "an unknown system"
    if fields.get("ID") == "debian" and fields.get("VERSION_ID") == "12":
        found += " (not yet supported)"
    return [Fault("release", found, f"Debian {' or '.join(releases)}")]


def check_memory(root: Path, min_memory_mib: int) -> list[Fault]:
    """The machine's memory, or the container's part of it."""
    meminfo = (root / "proc/meminfo").read_text(encoding="ascii")
    sizes = [int(kib) * 1024 for kib in re.findall(r"^MemTotal:\s+(\d+) kB", meminfo, re.MULTILINE)]
    for limit in ("memory.max", "memory/memory.limit_in_bytes"):  # cgroup version 2, version 1
        try:
            text = (root / "sys/fs/cgroup" / limit).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if text != "max":
            sizes.append(int(text))
    return _at_least("memory", min(sizes), min_memory_mib, "min_memory_mib")


def check_disk(path: str, min_disk_mib: int) -> list[Fault]:
    status = os.statvfs(path)
    free = status.f_bavail * status.f_frsize
    return _at_least(f"free space of {path}", free, min_disk_mib, "min_disk_mib")


def _at_least(what: str, size: int, mib: int, option: str) -> list[Fault]:
    if size >= mib << 20:
        return []
    return [Fault(what, f"{size >> 20} MiB", f"at least {mib} MiB ({option})")]


def check_clock(controller_time: float, max_difference: int) -> list[Fault]:
    difference = round(time.time() - controller_time)
    if abs(difference) <= max_difference:
        return []
    direction = "ahead of" if difference > 0 else "behind"
    allowed = f"at most {max_difference} s (max_clock_difference): set the clock right"
    return [Fault("clock", f"{abs(difference)} s {direction} the controller's", allowed)]


def check_name(hostname: str) -> list[Fault]:
    try:
        socket.getaddrinfo(hostname, None)
    except (OSError, UnicodeError) as error:
        return [
            Fault("name", f"{hostname!r} ({error})", "one that this host can resolve (resolve)")
        ]
    return []


def check_ports(root: Path, ports: Sequence[int]) -> list[Fault]:
    """Ports that another program holds: it would keep ours from starting."""
    wanted = [listener for listener in listeners(root) if _in_the_way(listener, ports)]
    holders = _holders(root, {listener.inode for listener in wanted})
    faults = {}
    for listener in wanted:
        pids = holders.get(listener.inode, [])
        programs = {pid: _program(root, pid) for pid in pids}
        owners = OWNERS.get(listener.port, ())
        if not set(owners) & set(programs.values()):
            pid = min(pids, default=0)
            held = f"held by {programs[pid]} (pid {pid})" if pids else "held by an unknown program"
            nobody = f"nobody but {' or '.join(owners)}" if owners else "nobody"
            allowed = f"{nobody}: {_remedy(root, pid)}"
            faults[listener.port] = Fault(f"port {listener.port}", held, allowed)
    return [faults[port] for port in sorted(faults)]


def _in_the_way(listener: Listener, ports: Sequence[int]) -> bool:
    address = listener.address
    if listener.port != RESOLVER_PORT:
        return listener.port in ports
    ours = address.is_unspecified or str(address) in ("127.0.0.1", "::1")
    return RESOLVER_PORT in ports and ours


def listeners(root: Path) -> Iterator[Listener]:
    for table, state in _LISTENS.items():
        path = root / "proc/net" / table
        if not path.exists():  # no IPv6 in this kernel
            continue
        for line in path.read_text(encoding="ascii").splitlines()[1:]:
            fields = line.split()
            address, _colon, port = fields[1].rpartition(":")
            if fields[3] == state:
                yield Listener(_address(address), int(port, 16), fields[9])


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Hexadecimal words of 32 bits in the host's order, which is little-endian on Debian's
    release architectures but s390x (where a port is found all the same, an address isn't)."""
    raw = bytes.fromhex(text)
    return ipaddress.ip_address(b"".join(raw[i : i + 4][::-1] for i in range(0, len(raw), 4)))


def _holders(root: Path, inodes: set[str]) -> dict[str, list[int]]:
    """From a socket's inode to the processes that have it open."""
    holders: dict[str, list[int]] = {}
    links = {f"socket:[{inode}]": inode for inode in inodes}
    for descriptor in (root / "proc").glob("[0-9]*/fd/*") if links else ():
        try:
            inode = links.get(str(descriptor.readlink()))
        except OSError:  # the process or its descriptor has gone
            continue
        if inode:
            holders.setdefault(inode, []).append(int(descriptor.parts[-3]))
    return holders


def _program(root: Path, pid: int) -> str:
    return _read(root / "proc" / str(pid) / "comm").strip() or "a process that ended"


def _remedy(root: Path, pid: int) -> str:
    unit = re.search(
        r"([^/\n]+\.service)$", _read(root / "proc" / str(pid) / "cgroup"), re.MULTILINE
    )
    if unit:
        return f"systemctl disable --now {unit[1]}"
    if pid == 1:
        return "systemctl list-sockets shows the unit; systemctl disable --now it"
    return "stop that program and keep it from starting again"


def packages(root: Path) -> dict[str, str]:
    """The installed packages and their versions, from dpkg's database."""
    installed = {}
    for entry in _read(root / "var/lib/dpkg/status").split("\n\n"):
        fields = dict(re.findall(r"^(Package|Status|Version): (.*)$", entry, re.MULTILINE))
        if fields.get("Status", "").endswith(" installed"):
            installed[fields["Package"]] = fields["Version"]
    return installed


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
