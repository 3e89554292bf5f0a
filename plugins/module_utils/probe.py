# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) 2026, hikyaku.mail contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Dialogues with a mail host from outside, ready for a proof to judge."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import EmailMessage
from email.utils import formatdate, make_msgid

from .probe_imap import Imap
from .probe_pop3_sieve import Pop3, Sieve
from .probe_smtp import Refused, Reply, Smtp
from .probe_verdict import PeerVerdict, authentication_results, parse
from .probe_wire import ProbeError, Target, Transcript, Wire, anybody

PAUSE = 0.5


@dataclass(frozen=True, slots=True)
class Account:
    address: str
    password: str = field(repr=False)

    @property
    def domain(self) -> str:
        return self.address.rpartition("@")[2]


@dataclass(frozen=True, slots=True)
class Ports:
    """Where the services are. Only tests have them elsewhere."""

    smtp: int = 25
    submissions: int = 465
    submission: int = 587
    imap: int = 143
    imaps: int = 993
    pop3s: int = 995
    sieve: int = 4190


@dataclass(frozen=True, slots=True)
class RoundTrip:
    """What came back for a mail that was sent to an address that answers."""

    ours: dict[str, set[str]]  # our host's verdict on the answer
    peer: PeerVerdict  # the peer's verdict on our mail


@dataclass(slots=True)
class Session:
    """One probing of one host."""

    target: Target
    timeout: float
    account: Account | None = None
    second_account: str | None = None
    relay_target: str | None = None
    echo_address: str | None = None
    ports: Ports = Ports()
    name: str = "probe.invalid"  # that we greet with
    run: str = field(default_factory=lambda: f"probe-{secrets.token_hex(8)}")
    transcript: Transcript = field(default_factory=Transcript)
    deadline: float = 0.0
    _round_trips: dict[int, RoundTrip | ProbeError] = field(default_factory=dict)

    def begin(self) -> None:
        """A new proof: its own time and its own transcript."""
        self.deadline = time.monotonic() + self.timeout
        self.transcript = Transcript((self.account.password,) if self.account else ())

    @property
    def login(self) -> Account:
        if self.account is None:
            raise ProbeError("no account is given")
        return self.account

    @contextmanager
    def wire(self, port: int) -> Iterator[Wire]:
        with Wire(self.target, port, self.deadline, self.transcript) as wire:
            yield wire

    @contextmanager
    def smtp(self) -> Iterator[tuple[Wire, Smtp]]:
        """Port 25, before EHLO."""
        with self.wire(self.ports.smtp) as wire:
            yield wire, Smtp(wire, self.name)

    @contextmanager
    def submission(self, port: int, password: str | None = None) -> Iterator[Smtp]:
        """Logged in, over TLS whose certificate is the host's."""
        with self.wire(port) as wire:
            if port != self.ports.submission:
                wire.secure(self.target.trust)
            smtp = Smtp(wire, self.name)
            smtp.ehlo()
            if port == self.ports.submission:
                smtp.starttls(self.target.trust)
                smtp.ehlo()
            smtp.login(self.login.address, password or self.login.password)
            yield smtp

    @contextmanager
    def imap(self) -> Iterator[Imap]:
        with self.wire(self.ports.imaps) as wire:
            wire.secure(self.target.trust)
            imap = Imap(wire)
            imap.login(self.login.address, self.login.password)
            yield imap

    @contextmanager
    def pop3(self) -> Iterator[Pop3]:
        with self.wire(self.ports.pop3s) as wire:
            wire.secure(self.target.trust)
            yield Pop3(wire)

    @contextmanager
    def sieve(self) -> Iterator[Sieve]:
        with self.wire(self.ports.sieve) as wire:
            sieve = Sieve(wire)
            sieve.starttls(self.target.trust)
            yield sieve

    def certificates(self) -> dict[int, str]:
        """The fingerprint on each port."""
        found = {}
        for port in (self.ports.submissions, self.ports.imaps, self.ports.pop3s):
            with self.wire(port) as wire:
                wire.secure(anybody())
                found[port] = wire.fingerprint
        begin: dict[int, Callable[[Wire], None]] = {
            self.ports.smtp: self._smtp_starttls,
            self.ports.submission: self._smtp_starttls,
            self.ports.imap: lambda wire: Imap(wire).starttls(anybody()),
            self.ports.sieve: lambda wire: Sieve(wire).starttls(anybody()),
        }
        for port, starttls in begin.items():
            with self.wire(port) as wire:
                starttls(wire)
                found[port] = wire.fingerprint
        return found

    def _smtp_starttls(self, wire: Wire) -> None:
        smtp = Smtp(wire, self.name)
        smtp.ehlo()
        smtp.starttls(anybody())

    # Mail

    def message(self, recipient: str, subject: str, author: str | None = None) -> bytes:
        mail = EmailMessage()
        mail["From"] = author or self.login.address
        mail["To"] = recipient
        mail["Subject"] = subject
        mail["Date"] = formatdate()
        mail["Message-ID"] = make_msgid(domain=self.login.domain)
        mail.set_content("A probe of this mail host. It removes itself.\n")
        return mail.as_bytes()

    def submit(self, port: int, recipient: str, subject: str) -> Reply:
        """Send, and as clients do try again on "later": a filter may be starting."""
        while True:
            try:
                with self.submission(port) as smtp:
                    message = self.message(recipient, subject)
                    return smtp.deliver(message, self.login.address, recipient)
            except Refused as exc:
                if not exc.temporary or time.monotonic() + 4 * PAUSE > self.deadline:
                    raise
                time.sleep(4 * PAUSE)

    def arrival(self, subject: str) -> EmailMessage:
        """The mail with this subject, as soon as it is in the inbox."""
        with self.imap() as imap:
            imap.select("INBOX")
            while True:
                if found := imap.search(subject):
                    return parse(imap.fetch(found[0]))
                if time.monotonic() + PAUSE > self.deadline:
                    raise ProbeError(f"no mail with {subject} has arrived in time")
                time.sleep(PAUSE)

    def round_trip(self, port: int) -> RoundTrip:
        """Send to the address that answers, once for all proofs that ask about it."""
        if port not in self._round_trips:
            try:
                self._round_trips[port] = self._go_round(port)
            except ProbeError as exc:
                self._round_trips[port] = exc
        trip = self._round_trips[port]
        if isinstance(trip, ProbeError):
            raise ProbeError(str(trip))
        return trip

    def _go_round(self, port: int) -> RoundTrip:
        if self.echo_address is None:
            raise ProbeError("no echo_address is given")
        subject = f"{self.run}-round-trip-{port}"
        self.submit(port, self.echo_address, subject)
        answer = self.arrival(subject)
        return RoundTrip(authentication_results(answer, self.target.host), PeerVerdict(answer))

    def clean_up(self) -> int:
        """Remove the run's own mail, and count it."""
        removed = 0
        with self.imap() as imap:
            for mailbox in ("INBOX", "Junk"):
                if imap.select(mailbox) and (found := imap.search(self.run)):
                    imap.delete(found)
                    removed += len(found)
        return removed
