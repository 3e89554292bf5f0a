# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) 2026, hikyaku.mail contributors
"""TLS as clients meet it on every port, and what a renewal, or one that fails, does to them."""

from __future__ import annotations

import hashlib
import json
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from conftest import MailHost
from mailclient import STARTTLS_PORTS, TLS_PORTS, Imap, Smtp, before_tls
from testinfra.host import Host

PORTS = (*TLS_PORTS, *STARTTLS_PORTS)
TLS_DIR = "/etc/hikyaku/tls"
ACME_SERVER = "pebble.test"
# The lab's ACME server has a certificate of the lab's own authority.
RENEW = (
    f"REQUESTS_CA_BUNDLE={TLS_DIR}/acme-ca.pem "
    "certbot renew --force-renewal --no-random-sleep-on-renew"
)


def context(**settings: object) -> ssl.SSLContext:
    """A client that trusts anybody: what is asked is something else."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname, made.verify_mode = False, ssl.CERT_NONE
    for name, value in settings.items():
        setattr(made, name, value)
    return made


def handshake(server: MailHost, port: int, tls: ssl.SSLContext, name: str = "") -> tuple[str, str]:
    """(fingerprint of the leaf, TLS version) that a port serves."""
    with before_tls(server, port) as talk:
        talk.socket = tls.wrap_socket(talk.socket, server_hostname=name or server.name)
        leaf = talk.socket.getpeercert(binary_form=True)
        return hashlib.sha256(leaf).hexdigest(), talk.socket.version()


def served(server: MailHost) -> dict[int, str]:
    return {port: handshake(server, port, context())[0] for port in PORTS}


def landed(host: Host, name: str) -> str:
    told = host.check_output(f"openssl x509 -noout -fingerprint -sha256 -in {TLS_DIR}/{name}.pem")
    return told.partition("=")[2].replace(":", "").lower()


def key_of(host: Host, name: str) -> str:
    return host.check_output(f"openssl pkey -pubout -in {TLS_DIR}/{name}.pem")


@pytest.mark.parametrize("port", PORTS)
def test_certificate_of_the_lab_over_tls_1_3(
    host: Host, mx1: MailHost, tls: ssl.SSLContext, port: int
) -> None:
    fingerprint, version = handshake(mx1, port, tls)
    assert version == "TLSv1.3"
    assert fingerprint == landed(host, mx1.name)


@pytest.mark.parametrize("port", PORTS)
def test_tls_1_2_is_served(mx1: MailHost, port: int) -> None:
    older = context(maximum_version=ssl.TLSVersion.TLSv1_2)
    assert handshake(mx1, port, older)[1] == "TLSv1.2"


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
@pytest.mark.parametrize("version", ["TLSv1", "TLSv1_1"])
@pytest.mark.parametrize("port", PORTS)
def test_c033_old_protocol_is_refused(mx1: MailHost, port: int, version: str) -> None:
    old = context()
    # At OpenSSL's own level the client would not even offer them.
    old.set_ciphers("ALL:@SECLEVEL=0")
    old.minimum_version = old.maximum_version = ssl.TLSVersion[version]
    with pytest.raises(ssl.SSLError) as refusal:
        handshake(mx1, port, old)
    assert refusal.value.reason == "TLSV1_ALERT_PROTOCOL_VERSION"


@pytest.mark.parametrize("ciphers", ["aNULL", "eNULL", "kRSA"])
@pytest.mark.parametrize("port", PORTS)
def test_c034_weak_cipher_is_refused(mx1: MailHost, port: int, ciphers: str) -> None:
    weak = context(maximum_version=ssl.TLSVersion.TLSv1_2)
    weak.set_ciphers(f"{ciphers}:@SECLEVEL=0")
    with pytest.raises(ssl.SSLError) as refusal:
        handshake(mx1, port, weak)
    assert "HANDSHAKE_FAILURE" in refusal.value.reason


@pytest.mark.parametrize("port", PORTS)
def test_c042_unknown_name_gets_the_certificate(host: Host, mx1: MailHost, port: int) -> None:
    assert handshake(mx1, port, context(), "nobody.invalid")[0] == landed(host, mx1.name)


def test_private_key_is_for_root_only(host: Host, mx1: MailHost) -> None:
    file = host.file(f"{TLS_DIR}/{mx1.name}.pem")
    assert (file.user, file.group, file.mode) == ("root", "root", 0o600)
    assert "PRIVATE KEY" not in host.file(f"{TLS_DIR}/{mx1.name}.chain.pem").content_string


def test_deploying_what_is_deployed_changes_nothing(host: Host) -> None:
    report = json.loads(host.check_output("/usr/local/lib/hikyaku/tls-deploy"))
    assert (report["changed"], report["notes"], report["errors"]) == (False, [], [])


def test_c092_renewal_reaches_every_port_and_drops_nobody(
    host: Host, mx1: MailHost, tls: ssl.SSLContext, accounts: dict[str, str]
) -> None:
    before, key = landed(host, mx1.name), key_of(host, mx1.name)
    failures: list[str] = []
    stop = threading.Event()

    def knock(port: int) -> None:
        while not stop.wait(0.5):
            try:
                handshake(mx1, port, context())
            except OSError as error:
                failures.append(f"{port}: {error}")

    knockers = [threading.Thread(target=knock, args=(port,)) for port in PORTS]
    with ExitStack() as stack:
        idle = [
            stack.enter_context(Imap(mx1, tls, *account))
            for account in accounts.items()
            for _ in range(4)
        ]
        for session in idle:
            session.select()
            session.send(b"idle IDLE\r\n")
            assert session.readline().startswith(b"+")
        talking = [stack.enter_context(Smtp(mx1)) for _ in range(5)]
        for session in talking:
            session.ehlo()
        for knocker in knockers:
            knocker.start()
        try:
            host.check_output(RENEW)
        finally:
            stop.set()
            for knocker in knockers:
                knocker.join()
        after = landed(host, mx1.name)
        assert after != before
        assert set(served(mx1).values()) == {after}
        assert key_of(host, mx1.name) == key  # TLSA records 3 1 1 stay true
        assert failures == []
        # Dovecot gives the processes of before a reload a few seconds to go.
        time.sleep(8)
        assert [session.noop()[0] for session in talking] == [250] * len(talking)
        for session in idle:
            session.send(b"DONE\r\n")
            while not (line := session.readline()).startswith(b"idle "):
                assert line.startswith(b"* "), line
            assert line.startswith(b"idle OK")


def test_c093_acme_server_out_of_reach(host: Host, mx1: MailHost) -> None:
    before = landed(host, mx1.name)
    with unreachable(host, ACME_SERVER):
        failed = host.run(RENEW)
    assert failed.rc != 0
    assert f"Failed to renew certificate {mx1.name}" in failed.stderr
    assert landed(host, mx1.name) == before
    assert set(served(mx1).values()) == {before}


@contextmanager
def unreachable(host: Host, name: str) -> Iterator[None]:
    """No way leads to any of the addresses of this name, for a while."""
    addresses = {
        line.split()[0] for line in host.check_output(f"getent ahosts {name}").splitlines()
    }
    for address in addresses:
        host.check_output(f"ip route add unreachable {address}")
    try:
        yield
    finally:
        for address in addresses:
            host.check_output(f"ip route del unreachable {address}")


def test_c094_one_service_does_not_take_the_new_pair(host: Host, mx1: MailHost) -> None:
    before = landed(host, mx1.name)
    host.check_output(f"{RENEW} --no-directory-hooks")
    # Dovecot refuses to reload a configuration that it can't read, and goes on with the old pair.
    host.check_output(
        "cp -p /etc/dovecot/dovecot.conf /root && echo no >> /etc/dovecot/dovecot.conf"
    )
    try:
        failed = host.run("/usr/local/lib/hikyaku/tls-deploy")
    finally:
        host.check_output("mv /root/dovecot.conf /etc/dovecot/dovecot.conf")
    assert failed.rc == 1
    assert "dovecot.service on port 993 does not serve" in failed.stderr
    assert "the pair from before is back" in failed.stderr
    assert landed(host, mx1.name) == before
    assert set(served(mx1).values()) == {before}
    # Mended, the next run does what was left undone.
    host.check_output("/usr/local/lib/hikyaku/tls-deploy")
    after = landed(host, mx1.name)
    assert after != before
    assert set(served(mx1).values()) == {after}
