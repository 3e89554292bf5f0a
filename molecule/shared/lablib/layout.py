# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) 2026, hikyaku.mail contributors
"""Who is in the lab, and where: names, addresses, paths."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path

SHARED = Path(__file__).resolve().parents[1]
ROOT = SHARED.parent.parent
CACHE = ROOT / ".cache/lab"
RUN = Path("/run/hikyaku-lab")  # the mount namespace and SSH's master sockets: gone after a reboot
NAMESPACE = RUN / "mnt"

NETWORK = "hikyaku-lab"
IMAGES = "localhost/hikyaku-lab"
LABEL = "hikyaku.lab"  # on hosts: the checkout they belong to; on images: 1
APT_VOLUME = "hikyaku-lab-apt"
NETWORK4 = ipaddress.IPv4Network(os.environ.get("LAB_NETWORK4", "198.51.100.0/24"))
NETWORK6 = ipaddress.IPv6Network(os.environ.get("LAB_NETWORK6", "2001:db8:25::/64"))


@dataclass(frozen=True)
class Host:
    """One host; a number N stands for the addresses NETWORK4 + N and NETWORK6::N."""

    name: str
    names: dict[int, str]  # the first is its hostname, the others are further addresses
    resolver: str  # the address that a new host has in /etc/resolv.conf

    @property
    def hostname(self) -> str:
        return self.names[self.number]

    @property
    def number(self) -> int:
        return next(iter(self.names))

    @property
    def addresses(self) -> list[str]:
        return [address for number in self.names for address in (v4(number), v6(number))]


def v4(number: int) -> str:
    return str(NETWORK4[number])


def v6(number: int) -> str:
    """::10 and not ::a, so that both families end in the same digits."""
    return str(NETWORK6[int(str(number), 16)])


PUBLIC_RESOLVER = v4(4)
HOSTS = {
    host.name: host
    for host in (
        # Everybody else: DNS, ACME, a public resolver and the mail system of peer.test.
        Host(
            "internet",
            {2: "internet.test", 3: "mx.peer.test", 4: "resolver.test"},
            resolver="127.0.0.1",
        ),
        Host("mx1", {10: "mx1.example.test"}, PUBLIC_RESOLVER),
        # Many clients in one, for bans and rate limits.
        Host(
            "client",
            {20: "client.test"} | {number: f"client{number}.test" for number in range(21, 30)},
            PUBLIC_RESOLVER,
        ),
    )
}


def facts() -> dict[str, object]:
    """What the lab's inventory has to know of its networks."""
    names = {name: number for host in HOSTS.values() for number, name in host.names.items()}
    reverse = [
        NETWORK4.network_address.reverse_pointer.split(".", 1)[1],  # a /24
        ".".join(NETWORK6.network_address.reverse_pointer.split(".")[16:]),  # a /64
    ]
    records: dict[str, list[str]] = {zone: [] for zone in reverse}
    for name, number in names.items():
        zone = name.split(".", 1)[1]
        lines = [f"{name}. A {v4(number)}", f"{name}. AAAA {v6(number)}"]
        records.setdefault(zone, []).extend(lines)
        for zone, address in zip(reverse, (v4(number), v6(number)), strict=True):
            pointer = ipaddress.ip_address(address).reverse_pointer
            records[zone].append(f"{pointer}. PTR {name}.")
    return {
        "network4": str(NETWORK4),
        "network6": str(NETWORK6),
        "gateway": [v4(1), v6(1)],  # this machine, as the hosts see it
        "address4": {name: v4(number) for name, number in names.items()},
        "address6": {name: v6(number) for name, number in names.items()},
        "reverse_zones": reverse,
        # Unbound denies names like these by itself; the last one is 2001:db8::/32.
        "existing_zones": ["test", reverse[0], ".".join(reverse[1].split(".")[-10:])],
        "records": records,  # by zone
    }
