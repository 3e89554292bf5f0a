# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) 2026, hikyaku.mail contributors
"""What the mailboxes offer and refuse. Names carry the row of the acceptance catalogue."""

from __future__ import annotations

import base64
import contextlib
import imaplib
import socket
import ssl
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import MailHost
from mailclient import (
    VISITOR,
    Dialogue,
    Imap,
    Pop3,
    Smtp,
    account_with,
    before_tls,
    message,
    plain,
    sieve_script,
    token,
    wait_for_message,
)
from testinfra.host import Host

ALICE, BOB = "alice@example.test", "bob@example.test"


def deliver(
    server: MailHost, recipient: str, subject: str, body: str = "Good morning.\r\n"
) -> None:
    with Smtp(server) as session:
        session.send_message(message(VISITOR, recipient, subject, body))


@pytest.mark.parametrize("port", [143, 4190])
def test_c015_no_login_before_tls(mx1: MailHost, accounts: dict[str, str], port: int) -> None:
    with Dialogue(mx1, port) as talk:
        if port == 143:
            talk.line()
            capabilities = talk.imap("CAPABILITY")
            assert b"LOGINDISABLED" in capabilities
            assert b"AUTH=" not in capabilities
            assert b"PRIVACYREQUIRED" in talk.imap(f"LOGIN {ALICE} {accounts[ALICE]}")
            assert b"a OK" not in talk.imap(f"AUTHENTICATE PLAIN {plain(ALICE, accounts[ALICE])}")
        else:
            assert b'"SASL" ""' in talk.sieve()
            reply = talk.sieve(f'AUTHENTICATE "PLAIN" "{plain(ALICE, accounts[ALICE])}"')
            assert reply.startswith(b"NO"), reply


def test_c015_pop3_in_the_clear_is_closed(mx1: MailHost) -> None:
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((mx1.ipv4, 110), 5)


def test_c023_unknown_user_and_wrong_password_look_the_same(
    mx1: MailHost, tls: ssl.SSLContext, accounts: dict[str, str]
) -> None:
    # Failures count against an address for a while, until it logs in well. These come from another
    # one than those of the other tests, and at once, so that they don't wait for each other.
    far = MailHost(mx1.name, mx1.ipv6, mx1.ipv6)
    Imap(far, tls, ALICE, accounts[ALICE]).logout()
    users = (ALICE, "nobody@example.test", "nobody@nowhere.test")

    def imap(user: str) -> bytes:
        with Dialogue(far, 993, tls) as talk:
            talk.line()
            return talk.imap(f"LOGIN {user} wrong")

    def pop3(user: str) -> bytes:
        with Dialogue(far, 995, tls) as talk:
            talk.line()
            talk.send(f"USER {user}\r\n".encode())
            reply = talk.line()
            talk.send(b"PASS wrong\r\n")
            return reply + talk.line()

    def submission(user: str) -> bytes:
        with Dialogue(far, 465, tls) as talk:
            talk.smtp()
            talk.smtp("EHLO pebble.test")
            return talk.smtp(f"AUTH PLAIN {plain(user, 'wrong')}")

    def sieve(user: str) -> bytes:
        with before_tls(far, 4190) as talk:
            talk.secure(tls)
            talk.sieve()
            return talk.sieve(f'AUTHENTICATE "PLAIN" "{plain(user, "wrong")}"')

    # Submission first: Postfix waits 10 s for an answer, which comes later after more failures.
    ways: list[Callable[[str], bytes]] = [submission, imap, pop3, sieve]
    with ThreadPoolExecutor(len(ways) * len(users)) as pool:
        first = list(pool.map(submission, users))
        rest = [pool.map(way, users) for way in ways[1:]]
        replies = [first, *map(list, rest)]
    for way, answers in zip(ways, replies, strict=True):
        assert len(set(answers)) == 1, (way.__name__, answers)
        assert not answers[0].upper().startswith((b"A OK", b"+OK\r\n+OK", b"235", b"OK")), answers


def test_c030_a_login_is_no_sql(mx1: MailHost, tls: ssl.SSLContext) -> None:
    far = MailHost(mx1.name, mx1.ipv6, mx1.ipv6)

    def login(user: str) -> bytes:
        with Dialogue(far, 993, tls) as talk:
            talk.line()
            encoded = base64.b64encode(f"\0{user}\0wrong".encode()).decode()
            return talk.imap(f"AUTHENTICATE PLAIN {encoded}")

    users = [
        "x' OR '1'='1",
        f"{ALICE}' --",
        "x' UNION SELECT 'a','{PLAIN}wrong' --",
        "%{user}",
        "a\\'",
    ]
    with ThreadPoolExecutor(len(users)) as pool:
        for reply in pool.map(login, users):
            assert reply.startswith(b"a NO"), reply


# What is sent in the clear, what is sent inside TLS, and the replies to be seen there: the first
# of ManageSieve is its greeting.
INJECTIONS = {
    25: (b"STARTTLS\r\nRSET\r\n", b"QUIT\r\n", [b"221"]),
    587: (b"STARTTLS\r\nRSET\r\n", b"QUIT\r\n", [b"221"]),
    143: (b"a STARTTLS\r\nb NOOP\r\n", b"c LOGOUT\r\n", [b"* B", b"c O"]),
    4190: (b"STARTTLS\r\nNOOP\r\n", b"LOGOUT\r\n", [b"OK ", b"OK "]),
}


@pytest.mark.parametrize("port", INJECTIONS)
def test_c038_what_follows_starttls_in_the_clear_is_dropped(
    mx1: MailHost, tls: ssl.SSLContext, port: int
) -> None:
    """A command in the same segment as STARTTLS must not be answered inside TLS."""
    clear, inside, expected = INJECTIONS[port]
    replies: list[bytes] = []
    with Dialogue(mx1, port) as talk:
        if port == 143:
            talk.line()
        elif port == 4190:
            talk.sieve()
        else:
            talk.smtp()
            talk.smtp("EHLO pebble.test")
        talk.send(clear)
        talk.line()
        # To hang up is a good answer too.
        with contextlib.suppress(OSError):
            talk.secure(tls)
            talk.send(inside)
            replies = talk.until(lambda line: not line)
    answers = [line[:3] for line in replies if line and not line.startswith(b'"')]
    assert answers in ([], expected), replies


@pytest.mark.parametrize("ports", [(993, 995), (995, 4190), (993, 465), (4190, 587)])
def test_c043_a_session_is_not_resumed_by_another_service(
    mx1: MailHost, tls: ssl.SSLContext, ports: tuple[int, int]
) -> None:
    tls12 = ssl.create_default_context()
    tls12.load_verify_locations(cadata=b"".join(tls.get_ca_certs(binary_form=True)))
    tls12.maximum_version = ssl.TLSVersion.TLSv1_2
    first, second = ports
    with before_tls(mx1, first) as talk:
        talk.secure(tls12)
        assert isinstance(talk.socket, ssl.SSLSocket)
        session = talk.socket.session
    with (
        before_tls(mx1, second) as talk,
        tls12.wrap_socket(talk.socket, server_hostname=mx1.name, session=session) as resumed,
    ):
        assert not resumed.session_reused


def test_c044_imap_needs_starttls_and_then_works(
    mx1: MailHost, tls: ssl.SSLContext, accounts: dict[str, str]
) -> None:
    with before_tls(mx1, 143) as talk:
        talk.secure(tls)
        assert b"AUTH=PLAIN" in talk.imap("CAPABILITY")
        assert b"a OK" in talk.imap(f"LOGIN {ALICE} {accounts[ALICE]}")


def test_imap_has_the_folders_that_clients_expect(
    mx1: MailHost, tls: ssl.SSLContext, accounts: dict[str, str]
) -> None:
    """RFC 6154."""
    with Imap(mx1, tls, ALICE, accounts[ALICE]) as session:
        _, listed = session.list()
    text = "\n".join(line.decode() for line in listed if isinstance(line, bytes))
    for name in ("Drafts", "Sent", "Junk", "Trash", "Archive"):
        assert f"\\{name}) " in text, text


def test_a_wrong_password_opens_nothing(mx1: MailHost, tls: ssl.SSLContext) -> None:
    far = MailHost(mx1.name, mx1.ipv6, mx1.ipv6)
    with pytest.raises(imaplib.IMAP4.error, match="AUTHENTICATIONFAILED"):
        Imap(far, tls, ALICE, "wrong")


def test_a_login_in_capitals_is_the_same_user(
    mx1: MailHost, tls: ssl.SSLContext, accounts: dict[str, str]
) -> None:
    with Imap(mx1, tls, ALICE.upper(), accounts[ALICE]) as session:
        assert session.select("INBOX")[0] == "OK"


def test_pop3_hands_mail_over(mx1: MailHost, tls: ssl.SSLContext, accounts: dict[str, str]) -> None:
    subject = token()
    deliver(mx1, BOB, subject)
    wait_for_message(mx1, tls, (BOB, accounts[BOB]), subject)
    session = Pop3(mx1, tls, BOB, accounts[BOB])
    try:
        newest = session.stat()[0]
        assert f"Subject: {subject}".encode() in session.retr(newest)[1]
    finally:
        session.quit()


def test_sieve_sorts_into_a_folder(
    mx1: MailHost, tls: ssl.SSLContext, accounts: dict[str, str]
) -> None:
    subject, other = token(), token()
    account = (BOB, accounts[BOB])
    script = (
        'require ["fileinto", "mailbox"];\r\n'
        f'if header :is "Subject" "{subject}" {{ fileinto :create "Sorted"; }}\r\n'
    )
    with sieve_script(mx1, tls, *account, script):
        deliver(mx1, BOB, subject)
        deliver(mx1, BOB, other)
        wait_for_message(mx1, tls, account, subject, mailbox="Sorted")
        wait_for_message(mx1, tls, account, other)
    with Imap(mx1, tls, *account) as session:
        assert not session.find(subject)
        session.delete("Sorted")


def test_a_script_with_a_fault_is_refused(
    mx1: MailHost, tls: ssl.SSLContext, accounts: dict[str, str]
) -> None:
    with (
        pytest.raises(AssertionError, match="NO"),
        sieve_script(mx1, tls, BOB, accounts[BOB], "this is no script"),
    ):
        pass


def test_sieve_redirects_under_its_owners_name(
    mx1: MailHost, tls: ssl.SSLContext, accounts: dict[str, str]
) -> None:
    """The envelope sender is then of our domain, whose SPF names this host."""
    subject = token()
    script = f'if header :is "Subject" "{subject}" {{ redirect "{ALICE}"; }}\r\n'
    with sieve_script(mx1, tls, BOB, accounts[BOB], script):
        deliver(mx1, BOB, subject)
        found = wait_for_message(mx1, tls, (ALICE, accounts[ALICE]), subject)
    assert found["Return-Path"] == f"<{BOB}>"


def test_c085_a_full_mailbox_is_refused_at_rcpt(
    mx1: MailHost, host: Host, tls: ssl.SSLContext, accounts: dict[str, str]
) -> None:
    """The sender is told at once; no bounce goes to who may be innocent."""
    subject = token()
    deliver(mx1, BOB, subject, "Something that takes place.\r\n" * 100)
    wait_for_message(mx1, tls, (BOB, accounts[BOB]), subject)
    with account_with(host, BOB, "quota_bytes", 1000), Smtp(mx1) as session:
        session.ehlo()
        for size in (500, 2000):  # one more than fits, and one that never would
            session.mail(VISITOR, [f"SIZE={size}"])
            assert session.rcpt(BOB)[0] == 552
            session.rset()
        session.mail(VISITOR)
        assert session.rcpt(ALICE)[0] == 250
