# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) 2026, hikyaku.mail contributors
"""What the MTA takes, refuses and keeps. Names carry the row of the acceptance catalogue."""

from __future__ import annotations

import contextlib
import smtplib
import ssl
from base64 import b64encode
from collections.abc import Iterator
from email.policy import SMTP
from functools import partial

import pytest
from conftest import MailHost
from mailclient import (
    DIRECTORY,
    VISITOR,
    Dialogue,
    Imap,
    Smtp,
    account_with,
    before_tls,
    eventually,
    message,
    plain,
    queue,
    submit,
    token,
    wait_for_message,
)
from testinfra.host import Host

ALICE, BOB, CAROL = "alice@example.test", "bob@example.test", "carol@second.test"
TEAM = "sales@example.test"  # an alias: alice and bob
POSTMASTER = ALICE  # where postmaster@example.test leads
ELSEWHERE = "somebody@peer.test"


@pytest.fixture
def visit(mx1: MailHost) -> Iterator[Smtp]:
    """A stranger's session on port 25, with its sender named."""
    with Smtp(mx1) as session:
        session.ehlo()
        assert session.mail(VISITOR)[0] == 250
        yield session


def refused(reply: tuple[int, bytes], *codes: int) -> None:
    assert reply[0] in (codes or range(500, 600)), reply


def test_c001_relay_is_refused(visit: Smtp, host: Host) -> None:
    refused(visit.rcpt(ELSEWHERE), 554)
    assert not [mail for mail in queue(host) if ELSEWHERE in str(mail)]


@pytest.mark.parametrize(
    "recipient",
    [
        "somebody%peer.test@example.test",
        "somebody%peer.test@mx1.example.test",
        "somebody%peer.test",
        "@example.test:somebody@peer.test",
        "@example.test,@second.test:somebody@peer.test",
        '"somebody@peer.test"@example.test',
        '"somebody@peer.test"',
        "somebody@peer.test@example.test",
        "peer.test!somebody@example.test",
        "peer.test!somebody",
        "somebody@[198.51.100.3]",
        "somebody@peer.test.",
        "somebody",
    ],
)
def test_c002_no_form_of_an_address_relays(visit: Smtp, recipient: str) -> None:
    refused(visit.docmd(f"RCPT TO:<{recipient}>"))


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_c003_a_neighbour_may_not_relay(mx1: MailHost, client: Host, family: str) -> None:
    """The client is in the mail host's own network, which counts for nothing."""
    script = (
        f"import smtplib; s = smtplib.SMTP('{getattr(mx1, family)}', 25); s.ehlo();"
        f"s.mail('{VISITOR}'); print(s.rcpt('{ELSEWHERE}')[0])"
    )
    assert client.check_output("python3 -c %s", script) == "554"


@pytest.mark.parametrize("port", [465, 587])
def test_c005_another_users_address_is_refused(
    mx1: MailHost, tls: ssl.SSLContext, accounts: dict[str, str], port: int
) -> None:
    with submit(mx1, port, tls, ALICE, accounts[ALICE]) as session:
        for sender in (BOB, CAROL, "nobody@example.test", ELSEWHERE):
            assert session.mail(sender)[0] == 250
            refused(session.rcpt(ALICE), 553)
            session.rset()


def test_c007_own_alias_and_detail_are_fine(
    mx1: MailHost, tls: ssl.SSLContext, accounts: dict[str, str]
) -> None:
    with submit(mx1, 465, tls, ALICE, accounts[ALICE]) as session:
        for sender in (TEAM, "alice+shop@example.test", "ALICE@Example.Test"):
            assert session.mail(sender)[0] == 250
            assert session.rcpt(BOB)[0] == 250, sender
            session.rset()


@pytest.mark.parametrize(
    "recipient",
    ["nobody@example.test", "nobody@second.test", "alice@second.test", "nobody@mx1.example.test"],
)
@pytest.mark.parametrize("sender", ["", VISITOR])
def test_c011_an_unknown_recipient_is_refused_at_rcpt(
    mx1: MailHost, host: Host, sender: str, recipient: str
) -> None:
    with Smtp(mx1) as session:
        session.ehlo()
        assert session.mail(sender)[0] == 250
        refused(session.rcpt(recipient), 550)
    assert not [mail for mail in queue(host) if recipient in str(mail)]


def test_c013_a_send_only_account_gets_no_mail(
    mx1: MailHost, visit: Smtp, tls: ssl.SSLContext, accounts: dict[str, str], host: Host
) -> None:
    with account_with(host, BOB, "send_only", 1):
        refused(visit.rcpt(BOB), 550)
        with submit(mx1, 587, tls, BOB, accounts[BOB]) as session:
            assert session.mail(BOB)[0] == 250
            assert session.rcpt(ALICE)[0] == 250
    assert visit.rcpt(BOB)[0] == 250


@pytest.mark.parametrize("port", [25, 587])
def test_c015_no_auth_before_tls(mx1: MailHost, accounts: dict[str, str], port: int) -> None:
    with Dialogue(mx1, port) as talk:
        talk.smtp()
        assert b"AUTH" not in talk.smtp("EHLO pebble.test")
        reply = talk.smtp(f"AUTH PLAIN {plain(ALICE, accounts[ALICE])}")
        assert reply.startswith(b"5"), reply


def test_c016_no_auth_on_port_25(
    mx1: MailHost, tls: ssl.SSLContext, accounts: dict[str, str]
) -> None:
    with before_tls(mx1, 25) as talk:
        talk.secure(tls)
        assert b"AUTH" not in talk.smtp("EHLO pebble.test")
        reply = talk.smtp(f"AUTH PLAIN {plain(ALICE, accounts[ALICE])}")
        assert reply.startswith(b"5"), reply


def test_c016_submission_wants_a_login(mx1: MailHost, tls: ssl.SSLContext) -> None:
    with Smtp(mx1, 587) as session:
        session.starttls(context=tls)
        session.mail(ALICE)
        refused(session.rcpt(BOB))


def test_c025_addresses_are_not_told(mx1: MailHost) -> None:
    with Smtp(mx1) as session:
        session.ehlo()
        for command in ("VRFY", "EXPN"):
            replies = {session.docmd(command, who) for who in (ALICE, "nobody@example.test")}
            assert len(replies) == 1, replies
            assert next(iter(replies))[0] in (252, 500, 502)


def test_c025_guessing_recipients_ends(visit: Smtp) -> None:
    codes = []
    with pytest.raises(smtplib.SMTPServerDisconnected):
        for number in range(40):
            codes.append(visit.rcpt(f"guess{number}@example.test")[0])
    assert set(codes) <= {550, 421}


# Where one implementation sees the end of a message and another doesn't: bare CR, bare LF and NUL
# around the dot. https://www.postfix.org/smtp-smuggling.html
AMBIGUOUS = [
    b"\n.\n",
    b"\n.\r\n",
    b"\r\n.\n",
    b"\r.\r",
    b"\r.\r\n",
    b"\r\n.\r",
    b"\n.\r",
    b"\r.\n",
    b"\r\n.\r\r\n",
    b"\r\n\r.\r\n",
    b"\r\n\0.\r\n",
    b"\r\n.\0\r\n",
    b"\r\0\n.\r\n",
    b"\r\n.\r\0\n",
    b"\n\n.\r\n",
    b"\r\r.\r\r",
]


def test_c046_end_of_data_variants(
    mx1: MailHost, tls: ssl.SSLContext, accounts: dict[str, str]
) -> None:
    """Whatever stands before the real end of data, it is one message."""
    sent, smuggled = [token() for _ in AMBIGUOUS], [token() for _ in AMBIGUOUS]
    for sequence, subject, hidden in zip(AMBIGUOUS, sent, smuggled, strict=True):
        with Dialogue(mx1, 25) as talk:
            talk.smtp()
            talk.smtp("EHLO pebble.test")
            talk.smtp(f"MAIL FROM:<{VISITOR}>")
            talk.smtp(f"RCPT TO:<{ALICE}>")
            assert talk.smtp("DATA").startswith(b"354")
            inner = message(VISITOR, ALICE, hidden).as_bytes(policy=SMTP)
            talk.send(
                message(VISITOR, ALICE, subject).as_bytes(policy=SMTP)
                + sequence
                + f"MAIL FROM:<{VISITOR}>\r\nRCPT TO:<{ALICE}>\r\nDATA\r\n".encode()
                + inner
                + b"\r\n.\r\n"
            )
            assert talk.smtp().startswith(b"250"), sequence
            assert talk.smtp("QUIT").startswith(b"221"), sequence
    with Imap(mx1, tls, ALICE, accounts[ALICE]) as session:
        for sequence, subject, hidden in zip(AMBIGUOUS, sent, smuggled, strict=True):
            found = eventually(partial(session.find, subject))
            assert len(found) == 1, sequence
            assert not session.find(hidden), sequence


@pytest.mark.parametrize("sequence", [b"\n.\n", b"\n.\r\n", b"\r\n.\n", b"\r.\r"])
def test_c048_nobody_is_trusted_with_line_ends(
    mx1: MailHost, host: Host, tls: ssl.SSLContext, accounts: dict[str, str], sequence: bytes
) -> None:
    """Not even the host itself, whose own programs may pass on what they got from elsewhere."""
    sent, hidden = token(), token()
    data = (
        message(VISITOR, ALICE, sent).as_bytes(policy=SMTP)
        + sequence
        + f"MAIL FROM:<{VISITOR}>\r\nRCPT TO:<{ALICE}>\r\nDATA\r\n".encode()
        + message(VISITOR, ALICE, hidden).as_bytes(policy=SMTP)
    )
    script = (
        "import base64, smtplib, sys; s = smtplib.SMTP('127.0.0.1', 25); s.ehlo();"
        "s.mail(sys.argv[1]); s.rcpt(sys.argv[2]); s.docmd('DATA');"
        "s.send(base64.b64decode(sys.argv[3]) + b'\\r\\n.\\r\\n'); print(s.getreply()[0])"
    )
    encoded = b64encode(data).decode()
    code = host.check_output("python3 -c %s %s %s %s", script, VISITOR, ALICE, encoded)
    assert code.strip() == "250"
    wait_for_message(mx1, tls, (ALICE, accounts[ALICE]), sent)
    with Imap(mx1, tls, ALICE, accounts[ALICE]) as session:
        assert not session.find(hidden)


@pytest.mark.parametrize(
    "opening",
    [
        b"POST / HTTP/1.1\r\nHost: mx1.example.test\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        f"EHLO pebble.test\r\nMAIL FROM:<{VISITOR}>\r\nRCPT TO:<{ALICE}>\r\nDATA\r\n".encode(),
    ],
)
def test_c049_who_does_not_wait_is_put_out(mx1: MailHost, opening: bytes) -> None:
    with Dialogue(mx1, 25) as talk:
        talk.smtp()
        talk.send(opening)
        replies = talk.until(lambda line: not line)
        assert not [line for line in replies if line.startswith(b"354")], replies
        assert replies[-2][:3] in (b"221", b"503", b"521", b"554"), replies


def test_c050_a_long_line_is_no_command(mx1: MailHost) -> None:
    with Dialogue(mx1, 25) as talk, contextlib.suppress(ConnectionResetError):  # a good answer too
        talk.smtp()
        reply = talk.smtp("EHLO " + "x" * 100_000)
        assert reply.startswith(b"5"), reply
    with Smtp(mx1) as session:
        assert session.ehlo()[0] == 250


def test_c055_chunking_is_not_there(visit: Smtp) -> None:
    assert "chunking" not in visit.esmtp_features
    assert visit.rcpt(ALICE)[0] == 250
    refused(visit.docmd("BDAT", "0 LAST"))


@pytest.mark.parametrize(
    "command",
    [
        b"MAIL FROM:<\xc3\xa4@pebble.test>",
        b"MAIL FROM:<\xc3\xa4@pebble.test> SMTPUTF8",
        b"MAIL FROM:<visitor@pebble.test> SMTPUTF8",
        b"MAIL FROM:<visitor\0@pebble.test>",
        b"MAIL FROM:<visitor\r@pebble.test>",
        b"MAIL FROM:visitor@pebble.test",
        b"MAIL FROM: Visitor <visitor@pebble.test>",
    ],
)
def test_c057_an_odd_sender_is_refused(mx1: MailHost, command: bytes) -> None:
    with Dialogue(mx1, 25) as talk:
        talk.smtp()
        talk.smtp("EHLO pebble.test")
        talk.send(command + b"\r\n")
        first = talk.smtp()
        second = talk.smtp(f"RCPT TO:<{ALICE}>")
        assert first.startswith(b"5") or second.startswith(b"5"), (first, second)


def test_c054_too_large_a_message_is_refused(visit: Smtp) -> None:
    limit = int(visit.esmtp_features["size"])
    visit.rset()
    refused(visit.mail(VISITOR, [f"SIZE={limit + 1}"]), 552)
    visit.rset()
    visit.mail(VISITOR)
    visit.rcpt(ALICE)
    lines = (b"x" * 998 + b"\r\n") * (limit // 1000 + 1)
    refused(visit.data(b"Subject: large\r\n\r\n" + lines), 552)


def test_the_postmaster_of_the_host_itself_is_there(visit: Smtp) -> None:
    """RFC 5321 section 4.5.1, with and without a domain."""
    assert visit.docmd("RCPT TO:<postmaster>")[0] == 250
    assert visit.rcpt("postmaster@mx1.example.test")[0] == 250


def test_mail_of_root_reaches_the_postmaster(
    mx1: MailHost, tls: ssl.SSLContext, accounts: dict[str, str], host: Host
) -> None:
    subject = token()
    host.check_output("printf 'Subject: %%s\\n\\nFrom cron.\\n' %s | sendmail root", subject)
    wait_for_message(mx1, tls, (POSTMASTER, accounts[POSTMASTER]), subject)


def test_an_alias_reaches_both(
    mx1: MailHost, tls: ssl.SSLContext, accounts: dict[str, str]
) -> None:
    subject = token()
    with submit(mx1, 465, tls, CAROL, accounts[CAROL]) as session:
        session.send_message(message(CAROL, TEAM, subject))
    for member in (ALICE, BOB):
        wait_for_message(mx1, tls, (member, accounts[member]), subject)


def test_an_address_with_detail_is_its_owners(
    mx1: MailHost, tls: ssl.SSLContext, accounts: dict[str, str]
) -> None:
    subject = token()
    with submit(mx1, 587, tls, BOB, accounts[BOB]) as session:
        session.send_message(message(BOB, "alice+shop@example.test", subject))
    wait_for_message(mx1, tls, (ALICE, accounts[ALICE]), subject)


def test_c069_a_submitters_address_is_not_told(
    mx1: MailHost, tls: ssl.SSLContext, accounts: dict[str, str]
) -> None:
    subject = token()
    with submit(mx1, 465, tls, ALICE, accounts[ALICE]) as session:
        assert session.sock
        own = session.sock.getsockname()[0]
        session.send_message(message(TEAM, BOB, subject))
    found = wait_for_message(mx1, tls, (BOB, accounts[BOB]), subject)
    assert own not in str(found.get_all("Received"))
    assert ALICE not in found.as_string()  # the login


def test_only_users_are_offered_delivery_notices(
    visit: Smtp, mx1: MailHost, tls: ssl.SSLContext
) -> None:
    assert "dsn" not in visit.esmtp_features
    for port in (465, 587):
        with before_tls(mx1, port) as talk:
            talk.secure(tls)
            if port == 465:
                talk.smtp()
            assert b"DSN" in talk.smtp("EHLO pebble.test")


def test_c083_mail_waits_for_the_mailboxes(
    mx1: MailHost, tls: ssl.SSLContext, accounts: dict[str, str], host: Host
) -> None:
    """With Dovecot down port 25 accepts, submission says later, and then all of it is delivered."""
    subject = token()
    host.check_output("systemctl stop dovecot")
    try:
        with Smtp(mx1) as session:
            session.send_message(message(VISITOR, ALICE, subject))
        waiting = eventually(lambda: [m for m in queue(host) if m["sender"] == VISITOR])
        assert waiting[0]["recipients"][0]["address"] == ALICE
        with before_tls(mx1, 587) as talk:
            talk.secure(tls)
            talk.smtp("EHLO pebble.test")
            reply = talk.smtp(f"AUTH PLAIN {plain(ALICE, accounts[ALICE])}")
            assert not reply.startswith(b"535"), reply  # that would mean: wrong password
    finally:
        host.check_output("systemctl start dovecot")
    host.check_output("postqueue -f")
    wait_for_message(mx1, tls, (ALICE, accounts[ALICE]), subject)
    assert not [mail for mail in queue(host) if mail["sender"] == VISITOR]


def test_without_its_directory_the_host_says_later(mx1: MailHost, host: Host) -> None:
    """Not "no such user": what can't be looked up may well exist."""

    def code() -> int:
        with Smtp(mx1) as session:
            session.ehlo()
            session.mail(VISITOR)
            return session.rcpt(ALICE)[0]

    # A process that is still at work keeps the file open: reload, and wait for a new one.
    host.check_output("mv %s %s.away && systemctl reload postfix", DIRECTORY, DIRECTORY)
    try:
        eventually(code, lambda code: code != 250)
        assert code() in (450, 451)
    finally:
        host.check_output("mv %s.away %s && systemctl reload postfix", DIRECTORY, DIRECTORY)
        eventually(code, lambda code: code == 250)
