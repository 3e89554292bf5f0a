# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) 2026, hikyaku.mail contributors
"""The program that checks, lands and proves certificates, against TLS servers of our own."""

from __future__ import annotations

import json
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

sys.path.insert(0, str(Path(__file__).parents[2] / "roles/tls/templates/lib"))
import tls_deploy

NAME = "mx1.example.test"
NOW = datetime.now(UTC)
DAY = timedelta(days=1)


# --- a small authority ---------------------------------------------------------------------


@dataclass(frozen=True)
class Issued:
    key: Any
    certificate: x509.Certificate

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    def key_pem(self, password: bytes = b"") -> bytes:
        how = BestAvailableEncryption(password) if password else NoEncryption()
        return bytes(self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, how))


def sign(
    subject: str,
    issuer: Issued | None = None,
    *,
    names: tuple[str, ...] = (),
    key: Any = None,
    start: datetime = NOW - DAY,
    end: datetime = NOW + 30 * DAY,
) -> Issued:
    """A certificate: of a server if it has names, else of an authority."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer.certificate.subject if issuer else name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=not names, path_length=None), True)
    )
    if names:
        alternatives = x509.SubjectAlternativeName([x509.DNSName(each) for each in names])
        builder = builder.add_extension(alternatives, False)
    signer = issuer.key if issuer else key
    return Issued(key, builder.sign(signer, hashes.SHA256()))


ROOT = sign("root")
MIDDLE = sign("middle", ROOT)
ROOTS = [ROOT.pem.decode()]


def leaf(**options: Any) -> Issued:
    return sign("leaf", MIDDLE, **{"names": (NAME,), **options})


def faults(issued: Issued, chain: bytes | None = None, key: bytes = b"", **options: Any) -> str:
    pair = tls_deploy.parse_pair(key or issued.key_pem(), chain or issued.pem + MIDDLE.pem)
    told = tls_deploy.check_pair(
        pair, options.get("names", [NAME]), options.get("roots", ROOTS), NOW
    )
    return "; ".join(told)


# --- the checks ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP256R1()),
        ec.generate_private_key(ec.SECP384R1()),
        rsa.generate_private_key(65537, 2048),
    ],
)
def test_a_good_pair_has_no_fault(key: Any) -> None:
    assert faults(leaf(key=key)) == ""


def test_root_may_close_the_chain() -> None:
    issued = leaf()
    assert faults(issued, issued.pem + MIDDLE.pem + ROOT.pem) == ""


def test_wildcard_covers_one_label_only() -> None:
    issued = leaf(names=("*.example.test",))
    assert faults(issued) == ""
    assert "does not cover a.b.example.test" in faults(issued, names=["a.b.example.test"])
    assert "does not cover example.test" in faults(issued, names=["example.test"])


def test_c035_leaf_only() -> None:
    issued = leaf()
    told = faults(issued, issued.pem)
    assert "does not verify against the given trusted roots" in told
    assert "are its intermediates missing?" in told


def test_c035_wrong_order() -> None:
    issued = leaf()
    assert "certificate 2 of 2, which must be the first" in faults(issued, MIDDLE.pem + issued.pem)
    told = faults(issued, issued.pem + ROOT.pem + MIDDLE.pem)
    assert "certificate 1 was issued by CN=middle, but CN=root follows" in told


def test_c035_expired() -> None:
    assert "CN=leaf expired on" in faults(leaf(start=NOW - 9 * DAY, end=NOW - DAY))


def test_c035_expired_intermediate() -> None:
    old = sign("middle", ROOT, key=MIDDLE.key, start=NOW - 9 * DAY, end=NOW - DAY)
    issued = leaf()
    assert "CN=middle expired on" in faults(issued, issued.pem + old.pem)


def test_c035_not_yet_valid() -> None:
    assert "CN=leaf is valid only from" in faults(leaf(start=NOW + DAY))


def test_c035_wrong_host() -> None:
    told = faults(leaf(names=("other.example.test",)))
    assert f"does not cover {NAME}; it has other.example.test" in told


def test_c035_untrusted() -> None:
    told = faults(leaf(), roots=[sign("root").pem.decode()])
    assert "does not verify against the given trusted roots" in told
    assert "does not verify against the system's trusted roots" in faults(leaf(), roots=[])


def test_c036_key_of_another_certificate() -> None:
    assert "does not match" in faults(leaf(), key=leaf().key_pem())


def test_c036_encrypted_key() -> None:
    with pytest.raises(tls_deploy.Fault, match="the private key is encrypted"):
        tls_deploy.parse_pair(leaf().key_pem(b"secret"), leaf().pem)


def test_c036_weak_or_unusual_keys() -> None:
    weak = rsa.generate_private_key(65537, 1024)
    assert "the RSA key has 1024 bits" in faults(leaf(key=weak))
    assert "secp521r1" in faults(leaf(key=ec.generate_private_key(ec.SECP521R1())))
    assert "Ed25519PrivateKey" in faults(leaf(key=ed25519.Ed25519PrivateKey.generate()))


def test_every_fault_is_told_at_once() -> None:
    told = faults(leaf(names=("other.test",), end=NOW - timedelta(hours=1)), key=leaf().key_pem())
    assert all(words in told for words in ("does not match", "expired", "does not cover"))


def test_no_pem_at_all() -> None:
    with pytest.raises(tls_deploy.Fault, match="private key can't be read"):
        tls_deploy.parse_pair(b"nothing", leaf().pem)
    with pytest.raises(tls_deploy.Fault, match="certificate can't be read"):
        tls_deploy.parse_pair(leaf().key_pem(), b"nothing")


# --- units and their ports -------------------------------------------------------------------


class Service:
    """A unit with one port: it reads the landed file when it is reloaded, unless it is stuck."""

    def __init__(self, pem: Path, starttls: str = "") -> None:
        self.pem, self.starttls, self.stuck, self.reloads = pem, starttls, False, 0
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def reload(self) -> None:
        self.reloads += 1
        if not self.stuck:
            self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.context.load_cert_chain(self.pem)

    def close(self) -> None:
        # A thread that waits in accept() keeps the port open: wake it, and see it go.
        if self._thread.is_alive():
            self._listener.shutdown(socket.SHUT_RDWR)
            self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _address = self._listener.accept()
            except OSError:
                return
            with connection:
                try:
                    self._talk(connection)
                except OSError:
                    continue

    def _talk(self, plain: socket.socket) -> None:
        greetings = {
            "smtp": (b"220-mx\r\n220 mx\r\n", b"250-mx\r\n250 STARTTLS\r\n", b"220 go on\r\n"),
            "imap": (b"* OK here\r\n", b"* CAPABILITY IMAP4rev1\r\na OK go on\r\n"),
            "pop3": (b"+OK here\r\n", b"+OK go on\r\n"),
            "sieve": (b'"STARTTLS"\r\nOK "here"\r\n', b'OK "go on"\r\n'),
            "broken": (b"500 no\r\n",),
        }
        answers = greetings.get(self.starttls, ())
        for place, answer in enumerate(answers):
            plain.sendall(answer)
            if place < len(answers) - 1:
                plain.recv(100)
        with self.context.wrap_socket(plain, server_side=True) as secure:
            secure.recv(100)


@dataclass
class Site:
    """A host with files of its own; `config` is what tls.json would say."""

    tls: Path
    config: dict[str, Any]
    services: dict[str, Service]
    source: Path

    def give(self, issued: Issued) -> Issued:
        (self.source / "key.pem").write_bytes(issued.key_pem())
        (self.source / "chain.pem").write_bytes(issued.pem + MIDDLE.pem)
        return issued

    def deploy(self, check: bool = False) -> tls_deploy.Report:
        return tls_deploy.deploy(self.config, {}, check)

    def add(self, unit: str, starttls: str = "") -> Service:
        service = self.services[unit] = Service(self.tls / f"{NAME}.pem", starttls)
        probe = {"port": service.port, "starttls": starttls}
        self.config["users"].append({"unit": unit, "probes": [probe]})
        return service

    @property
    def landed(self) -> bytes:
        return (self.tls / f"{NAME}.pem").read_bytes()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    for name in ("tls", "state", "source"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(tls_deploy, "TLS_DIR", tmp_path / "tls")
    monkeypatch.setattr(tls_deploy, "STATE_DIR", tmp_path / "state")
    certificate = {
        "name": NAME,
        "names": [NAME],
        "private_key": str(tmp_path / "source/key.pem"),
        "certificate": str(tmp_path / "source/chain.pem"),
    }
    config = {
        "certificates": [certificate],
        "trusted_roots": ROOTS,
        "trusted_root_files": [],
        "users": [],
        "probe_address": "127.0.0.1",
        "proof_timeout": 1,
    }
    made = Site(tmp_path / "tls", config, {}, tmp_path / "source")

    def systemctl(verb: str, unit: str) -> tuple[bool, str]:
        if verb == "reload":
            made.services[unit].reload()
        return unit in made.services, ""

    monkeypatch.setattr(tls_deploy, "systemctl", systemctl)
    yield made
    for service in made.services.values():
        service.close()


def fingerprint(issued: Issued) -> str:
    return tls_deploy.fingerprint_of(issued.certificate)


def serves(service: Service) -> str:
    probe = tls_deploy.Probe("unit", service.port, service.starttls, NAME, NAME, "127.0.0.1")
    return str(tls_deploy.served(probe))


def test_first_landing_writes_one_file_and_a_public_chain(site: Site) -> None:
    issued = site.give(leaf())
    report = site.deploy()
    assert (report.changed, report.landed, report.errors) == (True, [NAME], [])
    assert site.landed == issued.key_pem() + issued.pem + MIDDLE.pem
    assert (site.tls / f"{NAME}.pem").stat().st_mode & 0o777 == 0o600
    public = site.tls / f"{NAME}.chain.pem"
    assert public.read_bytes() == issued.pem + MIDDLE.pem
    assert public.stat().st_mode & 0o777 == 0o644
    assert sorted(path.name for path in site.tls.iterdir()) == [public.name, f"{NAME}.pem"]


def test_second_run_changes_and_reloads_nothing(site: Site) -> None:
    site.give(leaf())
    site.deploy()
    service = site.add("a.service")
    service.reload()
    report = site.deploy()
    assert (report.changed, report.reloaded, service.reloads) == (False, [], 1)


def test_check_mode_tells_and_changes_nothing(site: Site) -> None:
    assert site.deploy(check=True).changed  # it would be requested first
    site.give(leaf())
    report = site.deploy(check=True)
    assert (report.changed, report.landed) == (True, [NAME])
    assert list(site.tls.iterdir()) == []


def test_renewal_is_proven_on_every_port(site: Site) -> None:
    site.give(leaf())
    site.deploy()
    services = [site.add("a.service"), site.add("b.service", "smtp")]
    for service in services:
        service.reload()
    new = site.give(leaf())
    report = site.deploy()
    assert report.reloaded == ["a.service", "b.service"]
    assert len(report.proven) == 2
    assert {serves(service) for service in services} == {fingerprint(new)}


def test_c094_one_unit_fails_and_both_keep_a_valid_pair(site: Site) -> None:
    old = site.give(leaf())
    site.deploy()
    good, stuck = site.add("good.service"), site.add("stuck.service")
    good.reload()
    stuck.reload()
    before, stuck.stuck = site.landed, True
    site.give(leaf())
    report = site.deploy()
    assert any("stuck.service on port" in error for error in report.errors)
    assert any("the pair from before is back" in error for error in report.errors)
    assert site.landed == before
    assert (site.tls / f"{NAME}.chain.pem").read_bytes() == old.pem + MIDDLE.pem
    assert serves(good) == serves(stuck) == fingerprint(old)
    # The next run does not take the failure for done, and succeeds once the unit is mended.
    assert site.deploy().errors
    stuck.stuck = False
    assert site.deploy().errors == []


def test_reload_that_fails_brings_the_old_pair_back(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.give(leaf())
    site.deploy()
    before = site.landed
    site.add("a.service").reload()
    site.give(leaf())
    monkeypatch.setattr(tls_deploy, "systemctl", lambda verb, _unit: (verb != "reload", "no"))
    assert "a.service did not reload: no" in site.deploy().errors
    assert site.landed == before


def test_expired_pair_does_not_come_back(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls_deploy, "check_pair", lambda *_: [])
    site.give(leaf(start=NOW - 2 * DAY, end=NOW - DAY))
    site.deploy()
    service = site.add("a.service")
    service.reload()
    service.stuck = True
    new = site.give(leaf())
    assert any("the new one stays" in error for error in site.deploy().errors)
    assert site.landed.startswith(new.key_pem())


def test_run_killed_before_the_reload_is_finished_by_the_next(site: Site) -> None:
    site.give(leaf())
    site.deploy()
    service = site.add("a.service")
    service.reload()
    site.give(leaf())
    site.services.clear()  # nobody is reloaded: as if the run had been killed after landing
    site.deploy()
    site.services["a.service"] = service
    report = site.deploy()
    assert (report.changed, report.landed, report.reloaded) == (True, [], ["a.service"])


def test_port_that_never_served_our_file_does_not_stop_us(site: Site) -> None:
    site.give(leaf())
    site.deploy()
    service = site.add("a.service")
    other = site.source / "other.pem"
    stranger = leaf()
    other.write_bytes(stranger.key_pem() + stranger.pem)
    service.pem = other
    service.reload()
    site.give(leaf())
    report = site.deploy()
    assert (report.landed, report.errors) == ([NAME], [])
    assert "serves another certificate" in report.notes[0]


def test_closed_port_does_not_stop_us(site: Site) -> None:
    site.add("a.service").close()
    site.give(leaf())
    report = site.deploy()
    assert (report.landed, report.errors) == ([NAME], [])
    assert "refused" in report.notes[0]


def test_faulty_pair_is_not_landed_but_the_other_is(site: Site) -> None:
    site.give(leaf())
    wrong = {**site.config["certificates"][0], "name": "wrong", "names": ["wrong.test"]}
    site.config["certificates"].append(wrong)
    report = site.deploy()
    assert report.landed == [NAME]
    assert report.errors == [
        f"wrong: the certificate does not cover wrong.test; it has {NAME}; not deployed"
    ]
    assert not (site.tls / "wrong.pem").exists()


def test_c036_faulty_renewal_leaves_the_old_pair_live(site: Site) -> None:
    site.give(leaf())
    site.deploy()
    before = site.landed
    service = site.add("a.service")
    (site.source / "key.pem").write_bytes(leaf().key_pem())
    assert "does not match" in site.deploy().errors[0]
    assert (site.landed, service.reloads) == (before, 0)


def test_pair_given_as_text(site: Site) -> None:
    issued = leaf()
    text = {
        "private_key": issued.key_pem().decode(),
        "certificate": (issued.pem + MIDDLE.pem).decode(),
    }
    assert tls_deploy.deploy(site.config, {NAME: text}, False).landed == [NAME]


@pytest.mark.parametrize("starttls", ["", "smtp", "imap", "pop3", "sieve"])
def test_what_is_served_is_asked_in_each_protocol(site: Site, starttls: str) -> None:
    issued = site.give(leaf())
    site.deploy()
    service = site.add("a.service", starttls)
    service.reload()
    assert serves(service) == fingerprint(issued)


def test_unexpected_words_are_told(site: Site) -> None:
    service = site.add("a.service", "broken")
    service_probe = tls_deploy.Probe("a", service.port, "smtp", NAME, NAME, "127.0.0.1")
    assert tls_deploy.ask(service_probe) == ("", "unexpected answer '500 no'")


def test_landing_is_one_rename(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.give(leaf())
    site.deploy()
    before = site.landed
    site.give(leaf())
    rename: Callable[..., Path] = Path.rename

    def killed(self: Path, target: Path) -> Path:
        if target.name == f"{NAME}.pem":
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        site.deploy()
    assert site.landed == before
    monkeypatch.setattr(Path, "rename", rename)
    assert site.deploy().landed == [NAME]
    assert sorted(path.suffix for path in site.tls.iterdir()) == [".pem", ".pem"]


def test_program_prints_json_and_fails_with_words(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (site.tls / "tls.json").write_text(json.dumps(site.config))
    arguments = [f"--config={site.tls}/tls.json", f"--given={site.tls}/given.json"]
    monkeypatch.setattr(sys, "argv", ["tls-deploy", *arguments])
    assert tls_deploy.main() == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["errors"] == [err.strip()]
    assert "No such file" in err
    site.give(leaf())
    assert tls_deploy.main() == 0
