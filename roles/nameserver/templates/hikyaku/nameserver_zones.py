# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) 2026, hikyaku.mail contributors
"""Bring the records that the inventory declares into Knot's zones, and no others out of them.

check FILE   let Knot's parser read the declared zones
apply        tell Knot what changed since the last time; prints each change
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import dns.exception
import dns.name
import dns.rdata
import dns.rdatatype
import dns.zone
import libknot.control

DECLARED = Path("/etc/knot/declared.zones")
APPLIED = Path("/var/lib/hikyaku/nameserver/applied.zones")  # the declared zones of the last run
SOCKET = "/run/knot/knot.sock"
# Knot makes these itself.
SIGNER_TYPES = {"RRSIG", "NSEC", "NSEC3", "NSEC3PARAM", "DNSKEY", "CDS", "CDNSKEY"}

Key = tuple[dns.name.Name, str]  # owner and type
RRsets = dict[Key, tuple[int, set[dns.rdata.Rdata]]]  # their TTL and data


def split(text: str) -> dict[str, str]:
    """The text of each zone, by name: each begins with $ORIGIN."""
    zones = {}
    for part in text.split("\n$ORIGIN ")[1:]:
        name, rest = part.split("\n", 1)
        zones[name.strip()] = f"$ORIGIN {name}\n{rest}"
    return zones


def parse(name: str, text: str) -> RRsets:
    zone = dns.zone.from_text(text, origin=name, relativize=False, check_origin=False)
    return {
        (owner, dns.rdatatype.to_text(rdataset.rdtype)): (rdataset.ttl, set(rdataset))
        for owner, rdataset in zone.iterate_rdatasets()
    }


def rdata(rtype: str, text: str) -> dns.rdata.Rdata:
    return dns.rdata.from_text("IN", rtype, text, origin=dns.name.root, relativize=False)


class Knot:
    """Knot's control socket."""

    def __init__(self) -> None:
        self.control = libknot.control.KnotCtl()
        self.control.set_timeout(60)
        self.control.connect(SOCKET)

    def ask(self, command: str, zone: str, **words: str) -> dict[str, dict[str, dict]]:
        self.control.send_block(cmd=command, zone=zone, **words)
        return self.control.receive_block()

    def read(self, zone: str) -> RRsets:
        """What is in the zone now, except what the signer made."""
        try:
            answer = self.ask("zone-read", zone)
        except libknot.control.KnotCtlErrorRemote as exc:
            if "zone not loaded" not in str(exc) and "not exists" not in str(exc):
                raise
            return {}  # a new zone
        return {
            (dns.name.from_text(owner), rtype): (
                int(found["ttl"]),
                {rdata(rtype, text) for text in found["data"]},
            )
            for owner, rrsets in answer.get(zone, {}).items()
            for rtype, found in rrsets.items()
        }

    def change(self, zone: str, rrsets: RRsets, current: RRsets) -> None:
        """Replace these RRsets in one transaction."""
        self.ask("zone-begin", zone)
        try:
            for (owner, rtype), (ttl, data) in rrsets.items():
                where = {"owner": owner.to_text(), "rtype": rtype}
                # A zone is never without its SOA; a new one takes the old one's place.
                if (owner, rtype) in current and rtype != "SOA":
                    self.ask("zone-unset", zone, **where)
                for one in sorted(data):
                    self.ask("zone-set", zone, **where, ttl=str(ttl), data=one.to_text())
            self.ask("zone-commit", zone, flags="B")
        except libknot.control.KnotCtlError:
            self.ask("zone-abort", zone)
            raise


def same_but_serial(one: set[dns.rdata.Rdata], other: set[dns.rdata.Rdata]) -> bool:
    return {soa.replace(serial=0) for soa in one} == {soa.replace(serial=0) for soa in other}


def plan(old: RRsets, new: RRsets, current: RRsets) -> RRsets:
    """The RRsets to replace: what was declared and is no more goes, what is declared comes."""
    changes: RRsets = {}
    for key in sorted(old.keys() | new.keys()):
        ttl, data = current.get(key, (0, set()))
        wanted_ttl = new[key][0] if key in new else ttl
        wanted = (data - old.get(key, (0, set()))[1]) | new.get(key, (0, set()))[1]
        if key[1] == "SOA":
            if key not in new or (same_but_serial(data, new[key][1]) and ttl == wanted_ttl):
                continue
            serial = max([int(time.time()), *(soa.serial + 1 for soa in data)])
            wanted = {soa.replace(serial=serial) for soa in new[key][1]}
        if wanted != data or (wanted and ttl != wanted_ttl):
            changes[key] = (wanted_ttl, wanted)
    return changes


def delegation(knot: Knot, zone: str, names: list[str]) -> tuple[str, RRsets] | None:
    """The DS RRset of a signed zone and the zone of ours that it belongs to."""
    name = dns.name.from_text(zone)
    others = [dns.name.from_text(other) for other in names if other != zone]
    above = [other for other in others if name.is_subdomain(other)]
    cds = knot.read(zone).get((name, "CDS"))
    if not above or not cds:
        return None
    parent = max(above, key=len).to_text()
    ttl = knot.read(zone)[name, "SOA"][0]
    return parent, {(name, "DS"): (ttl, {rdata("DS", one.to_text()) for one in cds[1]})}


def report(zone: str, changes: RRsets) -> None:
    for (owner, rtype), (ttl, data) in changes.items():
        print(zone, owner, ttl, rtype, *sorted(one.to_text() for one in data), sep="\t")


def apply() -> None:
    declared = split(DECLARED.read_text())
    applied = split(APPLIED.read_text()) if APPLIED.exists() else {}
    knot = Knot()
    for zone, text in declared.items():
        current = knot.read(zone)
        old = parse(zone, applied[zone]) if zone in applied else {}
        if changes := plan(old, parse(zone, text), current):
            knot.change(zone, changes, current)
            report(zone, changes)
    APPLIED.parent.mkdir(parents=True, exist_ok=True)
    APPLIED.write_text(DECLARED.read_text())
    for zone in declared:
        if found := delegation(knot, zone, list(declared)):
            parent, wanted = found
            current = knot.read(parent)
            if any(current.get(key) != value for key, value in wanted.items()):
                knot.change(parent, wanted, current)
                report(parent, wanted)


def check(path: Path) -> None:
    """kzonecheck knows each zone's rules; dnspython has to understand the same text."""
    faults = []
    for zone, text in split(path.read_text()).items():
        with tempfile.NamedTemporaryFile("w", suffix=".zone") as file:
            file.write(text)
            file.flush()
            argv = ["kzonecheck", "--dnssec", "off", "--origin", zone, file.name]
            done = subprocess.run(argv, text=True, capture_output=True, check=False)
        if done.returncode:
            faults.append(f"{zone} {(done.stderr or done.stdout).strip()}")
        try:
            parse(zone, text)
        except dns.exception.DNSException as exc:
            faults.append(f"{zone} {exc}")
    if faults:
        sys.exit("\n".join(faults))


if __name__ == "__main__":
    try:
        match sys.argv[1:]:
            case ["check", path]:
                check(Path(path))
            case ["apply"]:
                apply()
            case _:
                sys.exit(__doc__)
    except libknot.control.KnotCtlError as exc:
        sys.exit(f"Knot: {exc}")
