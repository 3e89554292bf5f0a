# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) 2026, hikyaku.mail contributors
"""A part that is down means "later" for mail, never unfiltered or unsigned mail, and loses none."""

from __future__ import annotations

import smtplib
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import EmailMessage

import pytest
from conftest import MailHost
from mailclient import VISITOR, Smtp, eventually, message, submit, token, wait_for_message
from testinfra.host import Host

ALICE, ELSEWHERE = "alice@example.test", "somebody@peer.test"
KEYS = "/var/lib/rspamd/dkim"


@contextmanager
def stopped(host: Host, unit: str) -> Iterator[None]:
    host.check_output("systemctl stop %s", unit)
    try:
        yield
    finally:
        host.check_output("systemctl start %s", unit)


def receive(mx1: MailHost, mail: EmailMessage) -> int:
    """The last reply that a visitor gets for this mail."""
    with Smtp(mx1) as session:
        return last_reply(session, mail, VISITOR)


def send(mx1: MailHost, tls: ssl.SSLContext, password: str, port: int, mail: EmailMessage) -> int:
    """The last reply that Alice gets."""
    try:
        with submit(mx1, port, tls, ALICE, password) as session:
            return last_reply(session, mail, ALICE)
    except smtplib.SMTPResponseException as exc:  # it may come before the login
        return exc.smtp_code


def last_reply(session: Smtp, mail: EmailMessage, sender: str) -> int:
    try:
        session.ehlo()
        session.sendmail(sender, mail["To"], mail.as_bytes())
    except smtplib.SMTPRecipientsRefused as exc:
        return next(iter(exc.recipients.values()))[0]
    except smtplib.SMTPResponseException as exc:
        return exc.smtp_code
    return 250


def test_c080_without_rspamd_mail_waits_and_then_flows(
    mx1: MailHost, host: Host, internet: Host, tls: ssl.SSLContext, accounts: dict[str, str]
) -> None:
    incoming, subject = message(VISITOR, ALICE, token()), token()
    own = {port: message(ALICE, ALICE, token()) for port in (465, 587)}
    with stopped(host, "rspamd.service"):
        assert 400 <= receive(mx1, incoming) < 500
        for port, mail in own.items():
            assert 400 <= send(mx1, tls, accounts[ALICE], port, mail) < 500
        # A real peer keeps it in its queue.
        internet.check_output(
            "printf %%s %s | send-mail alice@example.test",
            f"From: sender@peer.test\nTo: {ALICE}\nSubject: {subject}\n\nPatience.\n",
        )
        eventually(lambda: "said: 451" in internet.check_output("postqueue -p"))
    assert receive(mx1, incoming) == 250
    for port, mail in own.items():
        assert send(mx1, tls, accounts[ALICE], port, mail) == 250
    internet.check_output("postqueue -f")
    for wanted in (subject, incoming["Subject"], *(mail["Subject"] for mail in own.values())):
        wait_for_message(mx1, tls, (ALICE, accounts[ALICE]), wanted)


def test_c082_without_valkey_mail_flows(
    mx1: MailHost, host: Host, tls: ssl.SSLContext, accounts: dict[str, str]
) -> None:
    incoming, own = message(VISITOR, ALICE, token()), message(ALICE, ALICE, token())
    with stopped(host, "valkey-server.service"):
        assert receive(mx1, incoming) == 250
        assert send(mx1, tls, accounts[ALICE], 465, own) == 250
        for mail in (incoming, own):
            wait_for_message(mx1, tls, (ALICE, accounts[ALICE]), mail["Subject"])


def test_c082_a_valkey_that_hangs_holds_no_mail_up(mx1: MailHost, host: Host) -> None:
    mail = message(VISITOR, ALICE, token())
    host.check_output("systemctl kill --signal=STOP valkey-server.service")
    try:
        assert receive(mx1, mail) == 250
    finally:
        host.check_output("systemctl kill --signal=CONT valkey-server.service")


@pytest.mark.parametrize("selector", ["r1", "e1"])
@pytest.mark.parametrize("fault", ["missing", "broken"])
def test_mail_that_cannot_be_signed_waits(
    mx1: MailHost,
    host: Host,
    tls: ssl.SSLContext,
    accounts: dict[str, str],
    selector: str,
    fault: str,
) -> None:
    """Even one signature of two that fails: the records promise both."""
    mail = message(ALICE, ELSEWHERE, token())
    key = f"{KEYS}/example.test.{selector}.key"
    harm = {"missing": "rm %s", "broken": "echo AAAA > %s"}[fault]
    host.check_output("cp -a %s /root/spared.key", key)
    host.check_output(harm, key)
    try:
        assert send(mx1, tls, accounts[ALICE], 587, mail) == 451
        # Others can still write to us.
        assert receive(mx1, message(VISITOR, ALICE, token())) == 250
    finally:
        host.check_output("rm -f %s && cp -a /root/spared.key %s && rm /root/spared.key", key, key)
    eventually(lambda: send(mx1, tls, accounts[ALICE], 587, mail) == 250)


def test_the_filter_is_not_fooled_by_the_other_test_pattern(mx1: MailHost) -> None:
    """Rspamd's own "no action" pattern would switch the filter off for the mail that has it."""
    pattern = "AJS*C4JDBQADN1.NSBN3*2IDNEN*GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*C.34X"
    assert receive(mx1, message("sender@peer.test", ALICE, token(), pattern)) == 554


def test_rspamd_and_valkey_listen_on_sockets_only(host: Host) -> None:
    assert not [
        s
        for s in host.socket.get_listening_sockets()
        if s.startswith("tcp")
        and s.rsplit(":", 1)[-1] in ("6379", "11332", "11333", "11334", "11335")
    ]
    for socket, group in (("/run/rspamd/milter.sock", "hikyaku"),
                          ("/run/rspamd/controller.sock", "_rspamd"),
                          ("/run/valkey/valkey.sock", "valkey")):  # fmt: skip
        file = host.file(socket)
        assert (file.group, file.mode & 0o007) == (group, 0)


def test_keys_are_for_root_and_rspamd(host: Host) -> None:
    for name in host.file(KEYS).listdir():
        file = host.file(f"{KEYS}/{name}")
        assert (file.user, file.group, file.mode) == ("root", "_rspamd", 0o640)
