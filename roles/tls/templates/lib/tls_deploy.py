# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) 2026, hikyaku.mail contributors
"""Check a certificate and its key, land them, reload their users and prove what is served.

Every source of certificates ends here: certbot's deploy hook, the private CA's timer and the
role's own task call this same program.  What it is told stands in /etc/hikyaku/tls/tls.json.

1. Each pair is checked, chain and names by an OpenSSL handshake as a client would do it.
   A pair with a fault is never landed; the others are.
2. Key and chain land as one file, NAME.pem, by one rename: no reader sees half a pair.
3. Every active unit is reloaded, and each of its ports must serve the new leaf.
4. If one doesn't, the old pairs come back, the units are reloaded again, and we exit with 1.

Standard output is one JSON object; faults are on standard error too, for the journal.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

try:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec, rsa
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        PublicFormat,
        load_pem_private_key,
    )
except ImportError:
    # Ansible's check mode on a host that has no packages yet: nothing can be checked there.
    if "--check" not in sys.argv:
        raise
    print(json.dumps({"changed": True, "notes": ["python3-cryptography isn't installed yet"]}))
    sys.exit(0)

TLS_DIR = Path("/etc/hikyaku/tls")
STATE_DIR = Path("/var/lib/hikyaku/tls")
# CA/Browser Forum Baseline Requirements 6.1.5: RSA from 2048 bits; of the curves, those that
# every mail server's TLS library verifies.
RSA_BITS = 2048
CURVES = ("secp256r1", "secp384r1")
CONNECT_TIMEOUT = 10.0
HISTORY = 20
# Ports with TLS from the first byte: what is spoken there, to take leave politely.
IMPLICIT = {465: "smtp", 993: "imap", 995: "pop3"}


class Fault(Exception):
    """One fault, told in words for the person who has to mend it."""


# --- the pair -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """A private key and its certificate chain, leaf first."""

    key: Any
    chain: list[x509.Certificate]

    @property
    def fingerprint(self) -> str:
        return fingerprint_of(self.chain[0])

    @property
    def chain_pem(self) -> bytes:
        return pem_of(self.chain)

    @property
    def pem(self) -> bytes:
        """The key comes first: Postfix' smtpd_tls_chain_files asks for that order."""
        key = self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return bytes(key) + self.chain_pem


def fingerprint_of(certificate: x509.Certificate) -> str:
    return hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest()


def pem_of(chain: list[x509.Certificate]) -> bytes:
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in chain)


def parse_pair(key_pem: bytes, chain_pem: bytes) -> Pair:
    try:
        key = load_pem_private_key(key_pem, password=None)
    except TypeError:
        raise Fault("the private key is encrypted: no daemon can ask for its passphrase") from None
    except ValueError as error:
        raise Fault(f"the private key can't be read: {error}") from None
    try:
        chain = x509.load_pem_x509_certificates(chain_pem)
    except ValueError as error:
        raise Fault(f"the certificate can't be read: {error}") from None
    return Pair(key, chain)


def read_pair(certificate: dict[str, Any], given: dict[str, Any]) -> Pair:
    """The pair as its source has it."""
    if pair := given.get(certificate["name"]):
        return parse_pair(pair["private_key"].encode(), pair["certificate"].encode())
    if not certificate["private_key"]:
        raise Fault("tls_files has no entry with this name")
    key_pem = Path(certificate["private_key"]).read_bytes()
    return parse_pair(key_pem, Path(certificate["certificate"]).read_bytes())


def check_pair(pair: Pair, names: list[str], roots: list[str], now: datetime) -> list[str]:
    """Every fault of the pair, in words."""
    faults = [*_key_faults(pair), *_date_faults(pair, now), *_name_faults(pair, names)]
    faults += _order_faults(pair)
    # OpenSSL's own verdict only when ours is clean: its words for the same faults are poorer.
    return faults or _handshake_faults(pair, names, roots)


def _key_faults(pair: Pair) -> Iterator[str]:
    if isinstance(pair.key, rsa.RSAPrivateKey):
        if pair.key.key_size < RSA_BITS:
            yield f"the RSA key has {pair.key.key_size} bits: at least {RSA_BITS} are needed"
    elif isinstance(pair.key, ec.EllipticCurvePrivateKey):
        if pair.key.curve.name not in CURVES:
            yield f"the key's curve is {pair.key.curve.name}: allowed are {', '.join(CURVES)}"
    else:
        # Ed25519 and others: no public CA signs them, and many mail servers can't verify them.
        yield f"the key is {type(pair.key).__name__}: allowed are RSA and EC keys"
    owners = [_public(certificate.public_key()) for certificate in pair.chain]
    own = _public(pair.key.public_key())
    if own not in owners:
        yield "the private key does not match the certificate"
    elif owners[0] != own:
        place = owners.index(own) + 1
        yield (
            "the chain is in the wrong order: the key belongs to "
            f"certificate {place} of {len(owners)}, which must be the first"
        )


def _public(key: Any) -> bytes:
    return bytes(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def _date_faults(pair: Pair, now: datetime) -> Iterator[str]:
    for certificate in pair.chain:
        subject = certificate.subject.rfc4514_string() or "the certificate"
        first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        if now > last:
            yield f"{subject} expired on {last:%Y-%m-%d %H:%M} UTC"
        if now < first:
            yield f"{subject} is valid only from {first:%Y-%m-%d %H:%M} UTC"


def _name_faults(pair: Pair, names: list[str]) -> Iterator[str]:
    # RFC 9525 section 6.1: only subjectAltName counts, never the common name.
    try:
        extension = pair.chain[0].extensions.get_extension_for_class(x509.SubjectAlternativeName)
        patterns = [name.lower() for name in extension.value.get_values_for_type(x509.DNSName)]
    except x509.ExtensionNotFound:
        patterns = []
    for name in names:
        # RFC 9525 section 6.3: a wildcard stands for exactly one label, the leftmost.
        if {name.lower(), "*." + name.lower().partition(".")[2]}.isdisjoint(patterns):
            have = ", ".join(patterns) or "no names"
            yield f"the certificate does not cover {name}; it has {have}"


def _order_faults(pair: Pair) -> Iterator[str]:
    # RFC 8446 section 4.4.2 lets clients sort a chain; old mail servers don't.
    for place, (lower, upper) in enumerate(zip(pair.chain, pair.chain[1:], strict=False), 1):
        if lower.issuer != upper.subject:
            yield (
                f"the chain is in the wrong order: certificate {place} was issued by "
                f"{lower.issuer.rfc4514_string()}, but {upper.subject.rfc4514_string()} follows"
            )


def _handshake_faults(pair: Pair, names: list[str], roots: list[str]) -> list[str]:
    """A TLS handshake in memory: what OpenSSL on both sides says of the pair."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if roots:
        client.load_verify_locations(cadata="\n".join(roots))
    else:
        client.load_default_certs()
    plain = [name for name in names if not name.startswith("*.")]
    client.check_hostname = bool(plain)
    try:
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        # OpenSSL reads from files only; one in memory keeps the key off the disk.
        with os.fdopen(os.memfd_create("pair"), "wb", buffering=0) as file:
            file.write(pair.pem)
            server.load_cert_chain(f"/proc/self/fd/{file.fileno()}")
        to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        ends = [
            client.wrap_bio(to_client, to_server, server_hostname=plain[0] if plain else None),
            server.wrap_bio(to_server, to_client, server_side=True),
        ]
        done: set[int] = set()
        while len(done) < len(ends):
            for place, end in enumerate(ends):
                try:
                    end.do_handshake()
                    done.add(place)
                except ssl.SSLWantReadError:
                    continue
    except ssl.SSLCertVerificationError as error:
        hint = "" if len(pair.chain) > 1 else " (it comes alone: are its intermediates missing?)"
        trust = "the given trusted roots" if roots else "the system's trusted roots"
        return [f"the chain does not verify against {trust}: {error.verify_message}{hint}"]
    except ssl.SSLError as error:
        return [f"OpenSSL refuses the pair: {error}"]
    return []


# --- files --------------------------------------------------------------------------------


def replace(path: Path, content: bytes, mode: int) -> None:
    """Write beside, fsync, rename: a reader, or a power cut, sees the old or the new file."""
    # The name is fixed, so that a run that was killed leaves nothing that the next one doesn't
    # use up; the lock keeps two of us apart.
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    new.rename(path)
    directory = os.open(path.parent, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)


def write_pair(name: str, pem: bytes, chain_pem: bytes) -> None:
    replace(TLS_DIR / f"{name}.pem", pem, 0o600)
    replace(TLS_DIR / f"{name}.chain.pem", chain_pem, 0o644)


def content_of(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


@contextmanager
def lock(name: str) -> Iterator[None]:
    """A timer, certbot's hook and an Ansible run may come at the same time."""
    STATE_DIR.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (STATE_DIR / f"{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class History:
    """Fingerprints that have landed for each name: how we know who reads our files."""

    def __init__(self) -> None:
        self._path = STATE_DIR / "landed.json"
        self._names: dict[str, list[str]] = json.loads(content_of(self._path) or b"{}")

    def __getitem__(self, name: str) -> list[str]:
        return self._names.get(name, [])

    def add(self, name: str, fingerprint: str) -> None:
        self._names[name] = [fingerprint, *(f for f in self[name] if f != fingerprint)][:HISTORY]
        replace(self._path, json.dumps(self._names).encode(), 0o600)


# --- the users ----------------------------------------------------------------------------


def systemctl(verb: str, unit: str) -> tuple[bool, str]:
    command = ["/usr/bin/systemctl", verb, unit]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode == 0, done.stderr.strip() or done.stdout.strip()


@dataclass(frozen=True)
class Probe:
    """One port where a unit serves one certificate."""

    unit: str
    port: int
    starttls: str
    certificate: str
    server_name: str
    address: str

    def __str__(self) -> str:
        return f"{self.unit} on port {self.port}"


def _expect(stream: Any, *last: str) -> str:
    """Read lines until one starts as the last of an answer does."""
    while line := stream.readline(4096).decode(errors="replace"):
        if line.startswith(last):
            return str(line)
        if not line.startswith(("2", "*", '"')):
            raise Fault(f"unexpected answer {line.strip()!r}")
    raise Fault("the connection was closed")


# Each dialogue up to the point where TLS starts: (what ends an answer, what to say next).
# RFC 3207 (SMTP), RFC 9051 section 6.2.1 (IMAP), RFC 2595 section 4 (POP3), RFC 5804 section 2.2.
STARTTLS: dict[str, list[tuple[str, str]]] = {
    "smtp": [("220 ", "EHLO localhost"), ("250 ", "STARTTLS"), ("220 ", "")],
    "imap": [("* OK", "a STARTTLS"), ("a OK", "")],
    "pop3": [("+OK", "STLS"), ("+OK", "")],
    "sieve": [("OK", "STARTTLS"), ("OK", "")],
}
GREETING = {"smtp": "220 ", "imap": "* OK", "pop3": "+OK"}
FAREWELL = {"smtp": "QUIT", "imap": "a LOGOUT", "pop3": "QUIT", "sieve": "LOGOUT"}


def served(probe: Probe) -> str:
    """The fingerprint of the leaf that the port serves."""
    # Who it is says the fingerprint; an expired old certificate must not stop the comparison.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with socket.create_connection((probe.address, probe.port), CONNECT_TIMEOUT) as plain:
        if probe.starttls:
            # Unbuffered: nothing that belongs to TLS may end up in our buffer.
            stream = plain.makefile("rwb", buffering=0)
            for answer, command in STARTTLS[probe.starttls]:
                _expect(stream, answer)
                if command:
                    stream.write(f"{command}\r\n".encode())
        with context.wrap_socket(plain, server_hostname=probe.server_name) as secure:
            leaf = secure.getpeercert(binary_form=True) or b""
            # Take leave as a client does: a bare close leaves a line of complaint in the log.
            protocol = probe.starttls or IMPLICIT.get(probe.port, "")
            if protocol and not probe.starttls:
                _expect(secure.makefile("rb", buffering=0), GREETING[protocol])
            if protocol:
                secure.sendall(f"{FAREWELL[protocol]}\r\n".encode())
    return hashlib.sha256(leaf).hexdigest()


def ask(probe: Probe) -> tuple[str, str]:
    """(fingerprint, "") or ("", why there is none)."""
    try:
        return served(probe), ""
    except (OSError, Fault) as error:
        return "", str(error)


def probes_of(config: dict[str, Any], is_active: Callable[[str], bool]) -> dict[str, list[Probe]]:
    """The probes of each unit that is active."""
    names = {certificate["name"]: certificate["names"][0] for certificate in config["certificates"]}
    first = next(iter(names), "")
    return {
        user["unit"]: [
            Probe(
                unit=user["unit"],
                port=probe["port"],
                starttls=probe.get("starttls") or "",
                certificate=(name := probe.get("certificate") or first),
                server_name=names[name].replace("*.", "www."),
                address=config["probe_address"],
            )
            for probe in user["probes"]
        ]
        for user in config["users"]
        if is_active(user["unit"])
    }


def reload_and_prove(units: list[str], expected: dict[Probe, str], timeout: float) -> list[str]:
    """Reload the units, then poll until every probe serves what it should; what went wrong."""
    errors = []
    for unit in units:
        done, words = systemctl("reload", unit)
        if not done:
            errors.append(f"{unit} did not reload: {words}")
    # A reload is asynchronous: the old processes may answer for a moment yet.
    until = time.monotonic() + timeout
    missing = dict(expected)
    while missing and not errors:
        answers = {probe: ask(probe) for probe in missing}
        missing = {probe: want for probe, want in missing.items() if answers[probe][0] != want}
        if missing and time.monotonic() > until:
            for probe, want in missing.items():
                got, why = answers[probe]
                errors.append(
                    f"{probe} does not serve {probe.certificate} after its reload: expected "
                    f"{want[:16]}…, got {got[:16] + '…' if got else why}"
                )
            break
        if missing:
            time.sleep(0.25)
    return errors


# --- the whole ----------------------------------------------------------------------------


@dataclass
class Report:
    changed: bool = False
    landed: list[str] = field(default_factory=list)
    reloaded: list[str] = field(default_factory=list)
    proven: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def deploy(config: dict[str, Any], given: dict[str, Any], check: bool) -> Report:
    report = Report()
    root_files = [Path(path) for path in config["trusted_root_files"]]
    roots = [*config["trusted_roots"], *(path.read_text() for path in root_files if path.exists())]
    pairs: dict[str, Pair] = {}
    for certificate in config["certificates"]:
        name = certificate["name"]
        try:
            pair = read_pair(certificate, given)
            faults = check_pair(pair, certificate["names"], roots, datetime.now(UTC))
        except FileNotFoundError as error:
            # In check mode a certificate that would be requested isn't there yet.
            (report.notes if check else report.errors).append(f"{name}: {error}")
            report.changed |= check
        except (Fault, OSError, ssl.SSLError) as error:
            report.errors.append(f"{name}: {error}; not deployed")
        else:
            report.errors += [f"{name}: {fault}; not deployed" for fault in faults]
            if not faults:
                pairs[name] = pair

    history = History()
    old = {name: content_of(TLS_DIR / f"{name}.pem") for name in pairs}
    landing = [
        name
        for name, pair in pairs.items()
        if (old[name], content_of(TLS_DIR / f"{name}.chain.pem")) != (pair.pem, pair.chain_pem)
    ]

    # Only a port that serves what once landed here must serve the new pair: another one isn't
    # configured for our file yet (the role that does it may run after us), or isn't up yet.
    expected: dict[Probe, str] = {}
    stale: set[str] = set()
    units = probes_of(config, lambda unit: systemctl("is-active", unit)[0])
    for probe in (probe for probes in units.values() for probe in probes):
        if probe.certificate not in pairs:
            continue
        got, why = ask(probe)
        want = pairs[probe.certificate].fingerprint
        if got in {want, *history[probe.certificate]}:
            expected[probe] = want
            if got != want:
                stale.add(probe.unit)
        else:
            report.notes.append(f"{probe} {'serves another certificate' if got else why}")
    reloading = [
        unit
        for unit, probes in units.items()
        if unit in stale
        or (landing and not probes)
        or any(probe.certificate in landing for probe in probes)
    ]
    report.changed = report.changed or bool(landing or stale)
    report.landed, report.reloaded = landing, reloading
    if check or not report.changed:
        return report

    for name in landing:
        # The history first: a run that is killed here knows its own pair again next time.
        history.add(name, pairs[name].fingerprint)
        write_pair(name, pairs[name].pem, pairs[name].chain_pem)
    timeout = float(config["proof_timeout"])
    errors = reload_and_prove(reloading, expected, timeout)
    if not errors:
        report.proven = [str(probe) for probe in expected]
        return report

    report.errors += errors
    restored = put_back({name: old[name] for name in landing}, report)
    if restored:
        before = {
            probe: restored[probe.certificate]
            for probe in expected
            if probe.certificate in restored
        }
        report.errors += reload_and_prove(reloading, before, timeout)
    return report


def put_back(old: dict[str, bytes | None], report: Report) -> dict[str, str]:
    """Bring back the old pairs that are still good; their fingerprints by name."""
    restored = {}
    for name, content in old.items():
        chain = x509.load_pem_x509_certificates(content) if content else []
        if content and chain[0].not_valid_after_utc > datetime.now(UTC):
            write_pair(name, content, pem_of(chain))
            restored[name] = fingerprint_of(chain[0])
            report.errors.append(f"{name}: the pair from before is back")
        else:
            report.errors.append(f"{name}: there is no valid pair from before; the new one stays")
    report.landed = [name for name in report.landed if name not in restored]
    return restored


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="only say what would change")
    parser.add_argument("--config", default=str(TLS_DIR / "tls.json"), help="file, - for stdin")
    parser.add_argument("--given", default=str(TLS_DIR / "given.json"), help="pairs given as text")
    arguments = parser.parse_args()
    text = sys.stdin.read() if arguments.config == "-" else Path(arguments.config).read_text()
    config = json.loads(text)
    given = json.loads(content_of(Path(arguments.given)) or b"{}")
    with nullcontext() if arguments.check else lock("deploy"):
        report = deploy(config, given, arguments.check)
    print(json.dumps(asdict(report)))
    for error in report.errors:
        print(error, file=sys.stderr)
    return 1 if report.errors else 0


if __name__ == "__main__":
    sys.exit(main())
