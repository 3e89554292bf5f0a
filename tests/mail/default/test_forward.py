# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) 2026, hikyaku.mail contributors
"""Mail that an alias leads elsewhere is believed there, and its bounces find the way back."""

from __future__ import annotations

import json
import ssl
from typing import Any

import pytest
from conftest import MailHost
from mailclient import (
    VISITOR,
    Smtp,
    eventually,
    message,
    queue,
    submit,
    token,
    wait_for_message,
)
from testinfra.host import Host

ALICE, BOB, ARCHIVE = "alice@example.test", "bob@example.test", "archive@peer.test"
# Leads to Bob and to the archive.
FORWARD = "forward@example.test"
SENDER = "sender@peer.test"
FORGED = "SRS0=aaaa=AA=peer.test=sender@mx1.example.test"

# As peer.test sends, signature and address included, but to this host.
SEND = """
import importlib.machinery, smtplib, subprocess, sys
peer = importlib.machinery.SourceFileLoader("peer", "/usr/local/bin/send-mail").load_module()
bind = subprocess.check_output(["postconf", "-h", "smtp_bind_address"], text=True).strip()
with smtplib.SMTP(sys.argv[1], local_hostname="mx.peer.test", source_address=(bind, 0)) as smtp:
    smtp.sendmail(sys.argv[2], sys.argv[3], peer.sign(peer.complete(sys.argv[4].encode())))
"""
# What peer.test got with this subject, and what it thinks of it.
LOOK = """
import dkim, email, json, pathlib, sys
found = []
for path in pathlib.Path("/var/mail/peer").glob("*/*"):
    raw = path.read_bytes()
    mail = email.message_from_bytes(raw)
    if mail["Subject"] == sys.argv[1]:
        found.append({
            "to": mail["X-Original-To"], "sender": mail["Return-Path"].strip("<>"),
            "arc": dkim.arc_verify(raw)[0].decode(), "seal": mail["ARC-Seal"] or "",
            "dkim": "DKIM-Signature" in mail and dkim.verify(raw),
        })
print(json.dumps(found))
"""


def send(internet: Host, mx1: MailHost, subject: str, recipient: str = FORWARD) -> None:
    mail = f"From: {SENDER}\nTo: {recipient}\nSubject: {subject}\n\nGood morning.\n"
    internet.check_output(
        "python3 -W ignore -c %s %s %s %s %s", SEND, mx1.ipv4, SENDER, recipient, mail
    )


def arrived(internet: Host, subject: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(
        internet.check_output("python3 -c %s %s", LOOK, subject)
    )
    return found


def at_peer(internet: Host, subject: str) -> dict[str, Any]:
    found: list[dict[str, Any]] = eventually(lambda: arrived(internet, subject))
    assert len(found) == 1, found
    return found[0]


def rcpt(mx1: MailHost, address: str) -> int:
    with Smtp(mx1) as session:
        session.ehlo()
        session.mail("<>")
        return session.rcpt(address)[0]


def test_c014_forwarded_mail_is_believed_and_local_mail_keeps_its_sender(
    mx1: MailHost, internet: Host, tls: ssl.SSLContext, accounts: dict[str, str]
) -> None:
    subject = token()
    send(internet, mx1, subject)
    there = at_peer(internet, subject)
    assert there["to"] == ARCHIVE
    assert there["sender"].startswith("SRS0=")
    assert there["sender"].endswith(f"=peer.test=sender@{mx1.name}")
    assert there["arc"] == "pass"
    assert "d=example.test" in there["seal"]
    assert there["dkim"]
    here = wait_for_message(mx1, tls, (BOB, accounts[BOB]), subject)
    assert here["Return-Path"] == f"<{SENDER}>"


def test_c014_our_own_mail_keeps_its_sender(
    mx1: MailHost, internet: Host, tls: ssl.SSLContext, accounts: dict[str, str]
) -> None:
    subject = token()
    with submit(mx1, 465, tls, ALICE, accounts[ALICE]) as session:
        session.send_message(message(ALICE, ARCHIVE, subject))
    assert at_peer(internet, subject)["sender"] == ALICE


def test_c014_bounce_of_forwarded_mail_reaches_its_sender(mx1: MailHost, internet: Host) -> None:
    subject, bounce = token(), token()
    send(internet, mx1, subject)
    rewritten = at_peer(internet, subject)["sender"]
    # Some hosts change the case of what they bounce to.
    for address in (rewritten, rewritten.lower()):
        assert rcpt(mx1, address) == 250
    with Smtp(mx1) as session:
        session.sendmail("", rewritten, message(VISITOR, rewritten, bounce).as_bytes())
    there = at_peer(internet, bounce)
    assert (there["to"], there["sender"]) == (SENDER, "")


@pytest.mark.parametrize("address", [FORGED, FORGED.replace("SRS0", "SRS1"), f"x{FORGED}"])
def test_c014_forged_address_is_refused(mx1: MailHost, address: str) -> None:
    assert rcpt(mx1, address) == 550


def test_c014_nothing_is_forwarded_unrewritten(mx1: MailHost, host: Host, internet: Host) -> None:
    subject = token()
    host.check_output("systemctl stop postsrsd")
    try:
        assert rcpt(mx1, FORGED) == 451
        send(internet, mx1, subject)
        eventually(
            lambda: [
                target
                for mail in queue(host)
                for target in mail["recipients"]
                if mail["sender"] == SENDER and target.get("delay_reason")
            ]
        )
        assert arrived(internet, subject) == []
    finally:
        host.check_output("systemctl start postsrsd")
    host.check_output("postqueue -f")
    assert at_peer(internet, subject)["sender"].startswith("SRS0=")


def test_c014_secret_is_for_root_alone(host: Host) -> None:
    secret = host.file("/etc/postsrsd.secret")
    assert (secret.user, secret.mode) == ("root", 0o600)
    assert secret.size > 16
