# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) 2026, hikyaku.mail contributors
"""A small mail client for the protocol tests: Python's own, made to reach a host by its address
while they check its name, and a raw dialogue for what they are too polite to say."""

from __future__ import annotations

import base64
import imaplib
import json
import poplib
import smtplib
import socket
import ssl
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email import message_from_bytes, policy
from email.message import EmailMessage
from email.utils import formatdate, make_msgid
from typing import Any, Protocol, Self, cast

TIMEOUT = 30
DIRECTORY = "/var/lib/hikyaku/directory/directory.sqlite"
# Somebody from elsewhere, of a domain that publishes no policy about its mail.
VISITOR = "visitor@pebble.test"
# Services and how TLS comes to them: from the start, or by a command.
TLS_PORTS = (465, 993, 995)
STARTTLS_PORTS = (25, 587, 143, 4190)


class Server(Protocol):
    """What is needed of a mail host: its name for TLS, its address for the socket."""

    @property
    def name(self) -> str: ...
    @property
    def ipv4(self) -> str: ...


class Shell(Protocol):
    """What is needed of a testinfra host."""

    def check_output(self, command: str, *args: str) -> str: ...


def token() -> str:
    """A subject that no other message has."""
    return f"test-{uuid.uuid4().hex}"


def message(
    sender: str, recipient: str, subject: str, body: str = "Good morning.\r\n"
) -> EmailMessage:
    """A message that nobody has a reason to frown at."""
    mail = EmailMessage()
    mail["From"] = sender
    mail["To"] = recipient
    mail["Subject"] = subject
    mail["Date"] = formatdate()
    mail["Message-ID"] = make_msgid(domain=sender.rpartition("@")[2])
    mail.set_content(body)
    return mail


class Smtp(smtplib.SMTP):
    """SMTP to a server's address, under its name."""

    def __init__(self, server: Server, port: int = 25) -> None:
        self._server = server
        super().__init__(server.name, port, local_hostname="pebble.test", timeout=TIMEOUT)

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:
        return socket.create_connection((self._server.ipv4, port), timeout)


def submit(server: Server, port: int, tls: ssl.SSLContext, user: str, password: str) -> Smtp:
    """A submission session: TLS from the start on 465, by STARTTLS elsewhere, logged in."""
    session = SmtpTls(server, port, tls) if port == 465 else Smtp(server, port)
    if port != 465:
        session.starttls(context=tls)
    session.login(user, password)
    return session


class SmtpTls(Smtp):
    def __init__(self, server: Server, port: int, tls: ssl.SSLContext) -> None:
        self._tls = tls
        super().__init__(server, port)

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:
        return self._tls.wrap_socket(
            super()._get_socket(host, port, timeout), server_hostname=self._server.name
        )


class Imap(imaplib.IMAP4):
    """IMAP over TLS on port 993, logged in."""

    def __init__(self, server: Server, tls: ssl.SSLContext, user: str, password: str) -> None:
        self._server, self._tls = server, tls
        super().__init__(server.name, 993, timeout=TIMEOUT)
        self.login(user, password)

    def _create_socket(self, timeout: float | None) -> socket.socket:
        plain = socket.create_connection((self._server.ipv4, 993), timeout)
        return self._tls.wrap_socket(plain, server_hostname=self._server.name)

    def find(self, subject: str, mailbox: str = "INBOX") -> list[EmailMessage]:
        """All messages with this subject."""
        status, _ = self.select(f'"{mailbox}"', readonly=True)
        if status != "OK":  # a folder that a rule has still to make
            return []
        _, (numbers,) = self.search(None, "SUBJECT", subject)
        return [self._fetch(number) for number in numbers.decode().split()]

    def _fetch(self, number: str) -> EmailMessage:
        _, answer = self.fetch(number, "(BODY.PEEK[])")
        return message_from_bytes(cast(tuple[bytes, bytes], answer[0])[1], policy=policy.default)


class Pop3(poplib.POP3):
    """POP3 over TLS on port 995, logged in."""

    def __init__(self, server: Server, tls: ssl.SSLContext, user: str, password: str) -> None:
        self._server, self._tls = server, tls
        super().__init__(server.name, 995, timeout=TIMEOUT)
        self.user(user)
        self.pass_(password)

    def _create_socket(self, timeout: float) -> socket.socket:
        plain = socket.create_connection((self._server.ipv4, 995), timeout)
        return self._tls.wrap_socket(plain, server_hostname=self._server.name)


class Dialogue:
    """Lines sent and read as they are, with TLS put under them when wanted."""

    def __init__(self, server: Server, port: int, tls: ssl.SSLContext | None = None) -> None:
        self._server = server
        self.socket = socket.create_connection((server.ipv4, port), TIMEOUT)
        self._file = self.socket.makefile("rb")
        if tls:
            self.secure(tls)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self.socket.close()

    def secure(self, tls: ssl.SSLContext) -> None:
        self._file.close()
        self.socket = tls.wrap_socket(self.socket, server_hostname=self._server.name)
        self._file = self.socket.makefile("rb")

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def line(self) -> bytes:
        """The next line, empty when the other side has closed."""
        return self._file.readline()

    def until(self, last: Callable[[bytes], bool]) -> list[bytes]:
        """Lines up to the one that `last` is true for."""
        lines = [self.line()]
        while lines[-1] and not last(lines[-1]):
            lines.append(self.line())
        return lines

    # The three languages differ in how a reply ends.
    def smtp(self, command: str | None = None) -> bytes:
        if command is not None:
            self.send(command.encode() + b"\r\n")
        return b"".join(self.until(lambda line: line[3:4] != b"-"))

    def imap(self, command: str) -> bytes:
        self.send(b"a " + command.encode() + b"\r\n")
        return b"".join(self.until(lambda line: line.startswith(b"a ")))

    def sieve(self, command: str | None = None) -> bytes:
        if command is not None:
            self.send(command.encode() + b"\r\n")
        ends = (b"OK", b"NO", b"BYE")
        return b"".join(self.until(lambda line: line.upper().startswith(ends)))


def before_tls(server: Server, port: int) -> Dialogue:
    """A connection at which a TLS handshake is the next thing to do."""
    talk = Dialogue(server, port)
    if port in (25, 587):
        talk.smtp()
        talk.smtp("EHLO pebble.test")
        assert talk.smtp("STARTTLS").startswith(b"220")
    elif port == 143:
        talk.line()
        assert b"a OK" in talk.imap("STARTTLS")
    elif port == 4190:
        talk.sieve()
        assert talk.sieve("STARTTLS").startswith(b"OK")
    return talk


def plain(user: str, password: str) -> str:
    """SASL PLAIN, RFC 4616."""
    return base64.b64encode(f"\0{user}\0{password}".encode()).decode()


@contextmanager
def sieve_script(
    server: Server, tls: ssl.SSLContext, user: str, password: str, script: str
) -> Iterator[None]:
    """Upload a Sieve script over ManageSieve (RFC 5804) and have it active for a while."""

    def good(reply: bytes) -> None:
        assert reply.splitlines()[-1].startswith(b"OK"), reply

    with before_tls(server, 4190) as talk:
        talk.secure(tls)
        good(talk.sieve())
        good(talk.sieve(f'AUTHENTICATE "PLAIN" "{plain(user, password)}"'))
        good(talk.sieve(f'PUTSCRIPT "test" {{{len(script.encode())}+}}\r\n{script}'))
        try:
            good(talk.sieve('SETACTIVE "test"'))
            yield
        finally:
            good(talk.sieve('SETACTIVE ""'))
            good(talk.sieve('DELETESCRIPT "test"'))
            good(talk.sieve("LOGOUT"))


def eventually(
    what: Callable[[], Any], good: Callable[[Any], bool] = bool, timeout: float = 60
) -> Any:
    """Ask until the answer is good, and return it; fail with the last one."""
    end = time.monotonic() + timeout
    while not good(answer := what()):
        assert time.monotonic() < end, f"still {answer!r} after {timeout} s"
        time.sleep(0.5)
    return answer


def wait_for_message(
    server: Server,
    tls: ssl.SSLContext,
    account: tuple[str, str],
    subject: str,
    mailbox: str = "INBOX",
    timeout: float = 60,
) -> EmailMessage:
    """The one message with this subject, as soon as it is there."""
    with Imap(server, tls, *account) as session:
        found = eventually(lambda: session.find(subject, mailbox), timeout=timeout)
    assert len(found) == 1, f"{len(found)} messages with subject {subject}"
    return cast(EmailMessage, found[0])


_SWAP = """
import sqlite3, sys
path, column, value, address = sys.argv[1:]
with sqlite3.connect(path) as directory:
    where = "WHERE address = ?", (address,)
    print(directory.execute(f"SELECT {column} FROM account {where[0]}", where[1]).fetchone()[0])
    directory.execute(f"UPDATE account SET {column} = ? {where[0]}", (value, *where[1]))
"""


@contextmanager
def account_with(host: Shell, address: str, column: str, value: int) -> Iterator[None]:
    """An account that is different for a while: column and value of the directory's table."""

    def swap(new: int | str) -> str:
        return host.check_output(
            "python3 -c %s %s %s %s %s", _SWAP, DIRECTORY, column, str(new), address
        ).strip()

    before = swap(value)
    try:
        yield
    finally:
        swap(before)


def queue(host: Shell) -> list[dict[str, Any]]:
    """What Postfix has queued, as postqueue -j tells it."""
    return [json.loads(line) for line in host.check_output("postqueue -j").splitlines()]
