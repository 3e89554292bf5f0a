# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) 2026, hikyaku.mail contributors
"""What is asked for, and when: certbot's lineages and the private CA."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509 import verification

sys.path.insert(0, str(Path(__file__).parents[2] / "roles/tls/templates/lib"))
import tls_deploy
import tls_request

NAME = "mx1.example.test"
SERVER = "https://acme.test:14000/dir"


class Host:
    """A host whose certbot is ours: it writes what certbot would, with the private CA's help."""

    def __init__(self, root: Path) -> None:
        self.root, self.lost_account = root, False
        self.commands: list[list[str]] = []
        self.new_ca()
        live = root / f"letsencrypt/live/{NAME}"
        self.config: dict[str, Any] = {
            "source": "acme",
            "certificates": [
                {
                    "name": NAME,
                    "names": [NAME],
                    "private_key": str(live / "privkey.pem"),
                    "certificate": str(live / "fullchain.pem"),
                }
            ],
            "trusted_roots": [],
            "key_type": "ecdsa-p256",
            "reuse_key": True,
            "ca_bundle": "",
            "renewal": {"server": SERVER, "authenticator": "standalone", "preferred_profile": ""},
            "private_ca": {"name": "our CA", "days": 3650, "certificate_days": 90},
        }

    def new_ca(self) -> None:
        pem = tls_request.new_ca("CA", timedelta(days=99))
        self.ca_key: Any = load_pem_private_key(pem, password=None)
        self.ca = x509.load_pem_x509_certificate(pem)

    @property
    def root_pem(self) -> str:
        return self.ca.public_bytes(Encoding.PEM).decode()

    def certbot(self, command: list[str], _config: dict[str, Any]) -> None:
        self.commands.append(command)
        if self.lost_account:
            self.lost_account = False
            (self.root / "log").write_text("urn:ietf:params:acme:error:accountDoesNotExist")
            raise tls_deploy.Fault("Account not found")
        name = command[command.index("--cert-name") + 1]
        renewal = self.root / f"letsencrypt/renewal/{name}.conf"
        if command[1] == "delete":
            renewal.unlink()
            return
        live = self.root / f"letsencrypt/live/{name}"
        account = self.root / "letsencrypt/accounts/acme.test:14000/dir/abc"
        for path in (live, account, renewal.parent):
            path.mkdir(parents=True, exist_ok=True)
        (account / "regr.json").touch()
        names = command[command.index("--domains") + 1].split(",")
        key = tls_request.new_key(self.config["key_type"])
        issued = tls_request.issue(names, key, self.ca, self.ca_key, timedelta(days=9))
        (live / "privkey.pem").write_bytes(tls_request.key_pem(key))
        (live / "fullchain.pem").write_bytes(issued.public_bytes(Encoding.PEM))
        settings = {key: value for key, value in self.config["renewal"].items() if value}
        lines = [f"{key} = {value}" for key, value in {**settings, "account": "abc"}.items()]
        renewal.write_text("\n".join(["# x = y", "[renewalparams]", *lines]))

    def request(self, check: bool = False) -> tls_request.Report:
        return tls_request.request(self.config, check)

    def reason(self) -> str:
        """Why it would be asked for again, after all was as wanted."""
        (requested,) = self.request(check=True).requested
        return str(requested.partition(": ")[2])


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    for name in ("tls", "state", "letsencrypt"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(tls_request, "TLS_DIR", tmp_path / "tls")
    monkeypatch.setattr(tls_request, "STATE_DIR", tmp_path / "state")
    monkeypatch.setattr(tls_request, "LETSENCRYPT", tmp_path / "letsencrypt")
    monkeypatch.setattr(tls_request, "CERTBOT_LOG", tmp_path / "log")
    made = Host(tmp_path)
    monkeypatch.setattr(tls_request, "run_certbot", made.certbot)
    return made


# --- ACME ----------------------------------------------------------------------------------


def test_missing_certificate_is_asked_for_once(host: Host) -> None:
    assert host.request(check=True).requested == [f"{NAME}: there is none"]
    assert host.commands == []
    assert host.request().changed
    assert not host.request().changed
    assert len(host.commands) == 1


def test_other_names_are_asked_for(host: Host) -> None:
    host.request()
    host.config["certificates"][0]["names"] = [NAME, "imap.example.test"]
    assert host.reason() == f"its names are {NAME}"
    host.request()
    assert "--new-key" not in host.commands[-1]
    assert not host.request().changed


def test_other_key_type_is_asked_for_with_a_new_key(host: Host) -> None:
    host.request()
    host.config["key_type"] = "ecdsa-p384"
    assert host.reason() == "its key is ecdsa-p256"
    host.request()
    assert "--new-key" in host.commands[-1]
    assert not host.request().changed


def test_other_settings_of_the_renewal_are_asked_for(host: Host) -> None:
    host.request()
    host.config["renewal"] |= {"authenticator": "webroot", "preferred_profile": "shortlived"}
    assert host.reason() == "it is renewed with another authenticator, preferred_profile"
    host.request()
    host.config["renewal"]["preferred_profile"] = ""
    assert host.reason() == "it is renewed with another preferred_profile"


def test_expired_certificate_is_asked_for(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.request()
    later = datetime.now(UTC) + timedelta(days=10)

    class Later(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Later:
            return cls.fromtimestamp(later.timestamp(), tz)

    monkeypatch.setattr(tls_request, "datetime", Later)
    assert host.reason().startswith("it ends on ")


def test_acme_server_that_was_made_anew(host: Host) -> None:
    host.config["trusted_roots"] = [host.root_pem]
    host.request()
    assert not host.request().changed
    host.new_ca()
    host.config["trusted_roots"], host.lost_account = [host.root_pem], True
    assert "does not verify against the given trusted roots" in host.reason()
    assert host.request().errors == []
    assert not host.request().changed


def test_lineage_whose_account_is_gone(host: Host) -> None:
    host.request()
    (host.root / "letsencrypt/accounts/acme.test:14000/dir/abc/regr.json").unlink()
    assert host.reason() == "its account is gone"


def test_c093_failure_is_told_and_the_others_are_asked_for(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = host.config["certificates"][0]
    host.config["certificates"].append({**first, "name": "other", "names": ["other.test"]})
    (host.root / "log").write_text("connection refused")

    def down(command: list[str], _config: dict[str, Any]) -> None:
        host.commands.append(command)
        raise tls_deploy.Fault("certbot failed: connection refused")

    monkeypatch.setattr(tls_request, "run_certbot", down)
    report = host.request()
    assert len(host.commands) == len(report.errors) == 2
    assert report.errors[0] == f"{NAME} (there is none): certbot failed: connection refused"


def test_what_is_no_longer_listed_is_no_longer_renewed(host: Host) -> None:
    host.request()
    stranger = host.root / "letsencrypt/renewal/stranger.conf"
    stranger.touch()
    host.config["source"] = "files"
    report = host.request(check=True)
    assert (report.changed, report.deleted, len(host.commands)) == (True, [NAME], 1)
    host.request()
    assert host.commands[-1][1] == "delete"
    assert not host.request().changed
    assert stranger.exists()


def test_certbots_list_of_one_is_read() -> None:
    text = "# a = b\nversion = 4.0.0\n[renewalparams]\nwebroot_path = /var/www/acme,\n"
    assert tls_request.renewal_settings(text) == {
        "version": "4.0.0",
        "webroot_path": "/var/www/acme",
    }


# --- the private CA ------------------------------------------------------------------------


@pytest.fixture
def private(host: Host) -> Host:
    path = str(host.root / f"state/issued/{NAME}.pem")
    host.config["source"] = "private_ca"
    host.config["certificates"][0] |= {"private_key": path, "certificate": path}
    return host


def issued(host: Host) -> tls_deploy.Pair:
    pem = (host.root / f"state/issued/{NAME}.pem").read_bytes()
    return tls_deploy.parse_pair(pem, pem)


def test_private_ca_is_made_once_and_its_certificates_pass(private: Host) -> None:
    assert len(private.request(check=True).requested) == 2
    assert list((private.root / "state").iterdir()) == []
    assert private.request().errors == []
    assert not private.request().changed
    assert (private.root / "state/private-ca.pem").stat().st_mode & 0o777 == 0o600
    public = (private.root / "tls/private-ca.crt").read_text()
    assert "PRIVATE KEY" not in public
    assert tls_deploy.check_pair(issued(private), [NAME], [public], datetime.now(UTC)) == []


def test_private_ca_stands_before_strict_clients(private: Host) -> None:
    """Some check RFC 5280 and the browsers' rules to the letter, more than OpenSSL does."""
    private.request()
    public = (private.root / "tls/private-ca.crt").read_bytes()
    store = verification.Store(x509.load_pem_x509_certificates(public))
    verifier = verification.PolicyBuilder().store(store)
    chain = verifier.build_server_verifier(x509.DNSName(NAME)).verify(issued(private).chain[0], [])
    assert len(chain) == 2


def test_private_ca_renews_in_the_last_third_with_the_same_key(private: Host) -> None:
    private.request()
    before = issued(private)
    private.config["private_ca"]["certificate_days"] = 300  # 90 days are less than its third
    assert private.request().requested[0].startswith(f"{NAME}: it ends on")
    assert issued(private).fingerprint != before.fingerprint
    assert tls_request.key_pem(issued(private).key) == tls_request.key_pem(before.key)
    private.config["private_ca"]["certificate_days"] = 1000
    private.config["reuse_key"] = False
    private.request()
    assert tls_request.key_pem(issued(private).key) != tls_request.key_pem(before.key)


@pytest.mark.parametrize("key_type", ["ecdsa-p384", "rsa-2048"])
def test_private_ca_follows_the_key_type(private: Host, key_type: str) -> None:
    private.request()
    private.config["key_type"] = key_type
    private.request()
    assert tls_request.key_type_of(issued(private).key.public_key()) == key_type
    assert not private.request().changed


def test_private_ca_is_never_replaced_silently(private: Host) -> None:
    private.config["private_ca"]["days"] = 80
    told = private.request().errors[0]
    assert "the private CA ends on" in told
    assert "private-ca.pem for a new one" in told


def test_private_ca_made_anew_issues_anew(private: Host) -> None:
    private.request()
    (private.root / "state/private-ca.pem").unlink()
    private.config["private_ca"]["name"] = "our second CA"
    assert private.request().requested[-1] == f"{NAME}: another CA issued it"
    assert not private.request().changed
