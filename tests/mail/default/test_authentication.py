# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) 2026, hikyaku.mail contributors
"""Who mail is from: judged on the way in, provable on the way out.

Names carry the row of the acceptance catalogue.
"""

from __future__ import annotations

import json
import ssl
from email.message import EmailMessage
from typing import Any

import pytest
from conftest import MailHost
from mailclient import VISITOR, Smtp, message, submit, token, wait_for_message
from testinfra.host import Host

ALICE, BOB = "alice@example.test", "bob@example.test"
PEER, ECHO = "sender@peer.test", "echo@peer.test"
GTUBE = "XJS*C4JDBQADN1.NSBN3*2IDNEN*GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*C.34X\r\n"


def offer(session: Smtp, mail: EmailMessage, sender: str, recipient: str) -> tuple[int, bytes]:
    """The reply to the message, when sender and recipient were fine."""
    session.ehlo()
    assert session.mail(sender)[0] == 250
    assert session.rcpt(recipient)[0] == 250
    return session.data(mail.as_bytes())


def send_from_peer(internet: Host, subject: str, options: str = "", more: str = "") -> None:
    mail = f"From: {PEER}\nTo: {ALICE}\nSubject: {subject}\n{more}\nGood morning.\n"
    internet.check_output(f"printf %%s %s | send-mail {options} {ALICE}", mail)


def results(mail: EmailMessage) -> str:
    """Our own verdict, and there is only this one."""
    fields = mail.get_all("Authentication-Results", [])
    assert len(fields) == 1, fields
    assert str(fields[0]).startswith("mx1.example.test;")
    return str(fields[0])


def test_good_mail_is_judged_good(
    mx1: MailHost, internet: Host, tls: ssl.SSLContext, accounts: dict[str, str]
) -> None:
    subject = token()
    send_from_peer(internet, subject)
    mail = wait_for_message(mx1, tls, (ALICE, accounts[ALICE]), subject)
    verdict = results(mail)
    assert "spf=pass" in verdict
    assert "dkim=pass header.d=peer.test" in verdict
    assert "dmarc=pass" in verdict
    assert "using TLSv1.3" in " ".join(map(str, mail.get_all("Received", [])))
    assert mail["X-Spam"] is None


def test_c009_a_broken_signature_is_told(
    mx1: MailHost, internet: Host, tls: ssl.SSLContext, accounts: dict[str, str]
) -> None:
    """SPF still passes and is aligned, so DMARC does."""
    subject = token()
    send_from_peer(internet, subject, "--dkim broken")
    verdict = results(wait_for_message(mx1, tls, (ALICE, accounts[ALICE]), subject))
    assert "dkim=fail" in verdict
    assert "dmarc=pass" in verdict


def test_forged_verdicts_are_removed(
    mx1: MailHost, internet: Host, tls: ssl.SSLContext, accounts: dict[str, str]
) -> None:
    subject = token()
    forged = "Authentication-Results: mx1.example.test; dmarc=pass header.from=bank.test\n"
    send_from_peer(internet, subject, more=f"{forged}X-Spam-Status: No\nX-Spam: Yes\n")
    mail = wait_for_message(mx1, tls, (ALICE, accounts[ALICE]), subject)
    assert "bank.test" not in results(mail)
    assert mail["X-Spam"] is None
    assert len(mail.get_all("X-Spam-Status", [])) == 1


def test_forged_verdicts_are_removed_from_our_own_peoples_mail(
    mx1: MailHost, tls: ssl.SSLContext, accounts: dict[str, str]
) -> None:
    mail = message(ALICE, BOB, token())
    mail["Authentication-Results"] = "mx1.example.test; dmarc=pass header.from=bank.test"
    with submit(mx1, 465, tls, ALICE, accounts[ALICE]) as session:
        assert offer(session, mail, ALICE, BOB)[0] == 250
    got = wait_for_message(mx1, tls, (BOB, accounts[BOB]), mail["Subject"])
    assert got["Authentication-Results"] is None


@pytest.mark.parametrize("author", [PEER, ALICE])
def test_c004_c010_a_forged_author_is_refused(mx1: MailHost, author: str) -> None:
    """Both domains publish p=reject, and the visitor's envelope isn't aligned with either."""
    with Smtp(mx1) as session:
        code, reply = offer(session, message(author, ALICE, token()), VISITOR, ALICE)
    assert (code, b"DMARC" in reply) == (554, True), reply


def test_c004_a_stranger_with_our_address_in_the_envelope_is_refused(mx1: MailHost) -> None:
    with Smtp(mx1) as session:
        session.ehlo()
        session.mail(ALICE)
        code, reply = session.rcpt(BOB)
        if code == 250:  # then its policy says it after the message
            code, reply = session.data(message(ALICE, BOB, token()).as_bytes())
    assert 500 <= code < 600, reply


def test_c009_two_authors_are_refused(mx1: MailHost) -> None:
    mail = message(VISITOR, ALICE, token())
    raw = b"From: ceo@bank.test\r\n" + mail.as_bytes()
    with Smtp(mx1) as session:
        session.ehlo()
        session.mail(VISITOR)
        session.rcpt(ALICE)
        assert session.data(raw)[0] == 554


@pytest.mark.parametrize("author", [BOB, "alice@second.test", "ceo@bank.test"])
def test_c006_a_login_writes_only_as_itself(
    mx1: MailHost, tls: ssl.SSLContext, accounts: dict[str, str], author: str
) -> None:
    with submit(mx1, 587, tls, ALICE, accounts[ALICE]) as session:
        assert offer(session, message(author, BOB, token()), ALICE, BOB)[0] == 554


@pytest.mark.parametrize("login", [False, True])
def test_c062_gtube_is_refused(
    mx1: MailHost, tls: ssl.SSLContext, accounts: dict[str, str], login: bool
) -> None:
    """Also from a login: an account that was taken over doesn't get spam out."""
    sender = ALICE if login else VISITOR
    mail = message(sender, BOB, token(), GTUBE)
    with submit(mx1, 465, tls, ALICE, accounts[ALICE]) if login else Smtp(mx1) as session:
        assert offer(session, mail, sender, BOB)[0] == 554


@pytest.fixture(scope="module", params=[465, 587])
def peers_verdict(
    request: pytest.FixtureRequest, mx1: MailHost, tls: ssl.SSLContext, accounts: dict[str, str]
) -> dict[str, Any]:
    """How the peer saw a mail that was submitted on this port."""
    mail = message(ALICE, ECHO, token())
    with submit(mx1, request.param, tls, ALICE, accounts[ALICE]) as session:
        assert offer(session, mail, ALICE, ECHO)[0] == 250
    answer = wait_for_message(mx1, tls, (ALICE, accounts[ALICE]), mail["Subject"])
    verdict: dict[str, Any] = json.loads(answer.get_content())
    return verdict


def test_the_peer_verifies_both_signatures(peers_verdict: dict[str, Any]) -> None:
    seen = {(one["domain"], one["algorithm"], one["result"]) for one in peers_verdict["dkim"]}
    assert seen == {
        ("example.test", "rsa-sha256", "pass"),
        ("example.test", "ed25519-sha256", "pass"),
    }


def test_the_peer_sees_spf_aligned_and_dmarc_pass(peers_verdict: dict[str, Any]) -> None:
    assert (peers_verdict["spf"]["result"], peers_verdict["spf"]["aligned"]) == ("pass", True)
    assert peers_verdict["dmarc"] == "pass"


def test_the_peer_gets_it_over_tls(peers_verdict: dict[str, Any]) -> None:
    assert peers_verdict["tls"]["version"] == "TLSv1.3"


def test_mail_of_the_host_itself_is_signed(
    mx1: MailHost, host: Host, tls: ssl.SSLContext, accounts: dict[str, str]
) -> None:
    subject = token()
    host.check_output(
        "printf %%s %s | sendmail -f root@mx1.example.test alice@example.test",
        f"From: root@mx1.example.test\nSubject: {subject}\n\nA cron job speaks.\n",
    )
    mail = wait_for_message(mx1, tls, (ALICE, accounts[ALICE]), subject)
    signatures = [str(field) for field in mail.get_all("DKIM-Signature", [])]
    assert len(signatures) == 2
    assert all("d=example.test" in field for field in signatures)
