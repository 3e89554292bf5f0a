# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) 2026, hikyaku.mail contributors
"""With mail_antivirus a virus is refused in and out, and what can't be checked waits."""

from __future__ import annotations

import io
import smtplib
import ssl
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.message import EmailMessage

import pytest
from conftest import MailHost
from mailclient import VISITOR, Imap, Smtp, eventually, message, submit, token, wait_for_message
from testinfra.host import Host

ALICE = "alice@example.test"
# The test pattern in halves, so that no scanner takes this file for it.
PATTERN = (r"X5O!P%@AP[4\PZX54(P^)7CC)7}$EICAR-STANDARD-" + "ANTIVIRUS-TEST-FILE!$H+H*").encode()
UNITS = "clamav-daemon.socket clamav-daemon.service"
SIGNATURES = "/var/lib/clamav/lab.ndb"


def plain(mail: EmailMessage) -> None:
    mail.add_attachment(PATTERN.decode(), filename="virus.txt", cte="7bit")


def encoded(mail: EmailMessage) -> None:
    mail.add_attachment(PATTERN, "application", "octet-stream", filename="virus.com")


def zipped(mail: EmailMessage) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("virus.com", PATTERN)
    mail.add_attachment(archive.getvalue(), "application", "zip", filename="virus.zip")


def nested(mail: EmailMessage) -> None:
    inner = message(VISITOR, ALICE, token())
    encoded(inner)
    for _level in range(4):
        outer = message(VISITOR, ALICE, token())
        outer.add_attachment(inner)
        inner = outer
    mail.add_attachment(inner)


def reply(session: Smtp, mail: EmailMessage) -> int:
    try:
        with session:
            session.ehlo()
            session.sendmail(mail["From"], mail["To"], mail.as_bytes())
    except smtplib.SMTPResponseException as exc:
        return exc.smtp_code
    return 250


@pytest.fixture
def ways(
    mx1: MailHost, tls: ssl.SSLContext, accounts: dict[str, str]
) -> dict[str, Callable[[], Smtp]]:
    """From envelope sender to a session: one from elsewhere, one of Alice's."""
    return {
        VISITOR: lambda: Smtp(mx1),
        ALICE: lambda: submit(mx1, 587, tls, ALICE, accounts[ALICE]),
    }


@contextmanager
def harmed(host: Host, harm: str, repair: str) -> Iterator[None]:
    host.check_output(harm)
    try:
        yield
    finally:
        host.check_output(repair)


@pytest.mark.parametrize("sender", [VISITOR, ALICE])
@pytest.mark.parametrize("attach", [plain, encoded, zipped, nested])
def test_a_virus_is_refused(
    ways: dict[str, Callable[[], Smtp]], sender: str, attach: Callable[[EmailMessage], None]
) -> None:
    mail = message(sender, ALICE, token())
    attach(mail)
    assert reply(ways[sender](), mail) == 554


@pytest.mark.parametrize(
    ("harm", "repair"),
    [
        (f"systemctl stop {UNITS}", f"systemctl start {UNITS}"),
        (  # it starts again and again, and finds nothing
            f"mv {SIGNATURES} /root/ && systemctl restart clamav-daemon.service",
            f"mv /root/lab.ndb {SIGNATURES} && systemctl restart {UNITS}",
        ),
    ],
    ids=["stopped", "no-signatures"],
)
def test_what_cannot_be_checked_waits_and_then_flows(
    mx1: MailHost,
    host: Host,
    tls: ssl.SSLContext,
    accounts: dict[str, str],
    ways: dict[str, Callable[[], Smtp]],
    harm: str,
    repair: str,
) -> None:
    mails = {sender: message(sender, ALICE, token()) for sender in ways}
    with harmed(host, harm, repair):
        for sender, mail in mails.items():
            assert 400 <= reply(ways[sender](), mail) < 500
    with Imap(mx1, tls, ALICE, accounts[ALICE]) as session:
        assert not [mail for mail in mails.values() if session.find(mail["Subject"])]
    for sender, mail in mails.items():
        eventually(lambda s=sender, m=mail: reply(ways[s](), m) == 250)
        wait_for_message(mx1, tls, (ALICE, accounts[ALICE]), mail["Subject"])


def test_only_rspamd_may_speak_to_clamd(host: Host) -> None:
    socket = host.file("/run/clamav/clamd.ctl")
    assert (socket.user, socket.group, socket.mode) == ("clamav", "_rspamd", 0o660)
