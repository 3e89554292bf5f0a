# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) 2026, hikyaku.mail contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The proofs: each says what it expects, and what the host did."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

from .probe import Session
from .probe_imap import Imap
from .probe_smtp import Refused, Smtp
from .probe_wire import ProbeError, anybody

Judge = Callable[[Session], str]


@dataclass(frozen=True, slots=True)
class Check:
    id: str
    title: str
    expected: str
    needs: tuple[str, ...]  # attributes of the session without which it is skipped
    judge: Judge  # tells what the host did; raises ProbeError if that isn't what is expected


@dataclass(frozen=True, slots=True)
class Proof:
    id: str
    title: str
    result: str  # pass, fail or skip
    expected: str
    actual: str
    evidence: list[str]
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


CHECKS: list[Check] = []


def check(id_: str, title: str, expected: str, *needs: str) -> Callable[[Judge], Judge]:
    def register(judge: Judge) -> Judge:
        CHECKS.append(Check(id_, title, expected, needs, judge))
        return judge

    return register


def run(session: Session, wanted: Iterable[str] | None = None) -> list[Proof]:
    """All proofs, or those wanted; whatever a server does, it is a result and no exception."""
    chosen = None if wanted is None else set(wanted)
    return [prove(session, one) for one in CHECKS if chosen is None or one.id in chosen]


def prove(session: Session, one: Check) -> Proof:
    missing = [name for name in one.needs if getattr(session, name) is None]
    if missing:
        return Proof(one.id, one.title, "skip", one.expected, f"no {missing[0]} given", [], 0.0)
    session.begin()
    start = time.monotonic()
    try:
        result, actual = "pass", one.judge(session)
    except ProbeError as exc:
        result, actual = "fail", str(exc)
    except Exception as exc:  # what a hostile server can make a parser do is a finding too
        result, actual = "fail", f"{type(exc).__name__}: {exc}"
    seconds = round(time.monotonic() - start, 3)
    evidence = session.transcript.lines
    return Proof(one.id, one.title, result, one.expected, actual, evidence, seconds)


def need(good: bool, actual: str) -> str:
    if not good:
        raise ProbeError(actual)
    return actual


# Port 25: what strangers meet


@check("smtp.starttls", "Port 25 offers TLS", "STARTTLS is offered")
def _starttls(session: Session) -> str:
    with session.smtp() as (_wire, smtp):
        offered = smtp.ehlo()
    return need("STARTTLS" in offered, f"offers {', '.join(offered) or 'nothing'}")


@check("smtp.tls13", "Port 25 speaks TLS 1.3", "TLSv1.3")
def _tls13(session: Session) -> str:
    with session.smtp() as (wire, smtp):
        smtp.ehlo()
        smtp.starttls(anybody())
        return need(wire.tls_version == "TLSv1.3", wire.tls_version)


@check("smtp.certificate", "The certificate is the host's", "trusted, and for the host's name")
def _certificate(session: Session) -> str:
    with session.smtp() as (wire, smtp):
        smtp.ehlo()
        smtp.starttls(session.target.trust)
        return f"trusted, for {session.target.host}, SHA-256 {wire.fingerprint}"


@check("smtp.no_auth", "Port 25 takes no passwords", "AUTH is not offered, with and without TLS")
def _no_auth(session: Session) -> str:
    with session.smtp() as (_wire, smtp):
        need("AUTH" not in smtp.ehlo(), "AUTH is offered without TLS")
        smtp.starttls(anybody())
        need("AUTH" not in smtp.ehlo(), "AUTH is offered with TLS")
    return "AUTH is not offered"


@check("smtp.relay_refused", "Strangers can't relay", "5xx for a foreign recipient", "relay_target")
def _relay(session: Session) -> str:
    return _recipient(session, str(session.relay_target))


@check(
    "smtp.unknown_recipient_refused",
    "Unknown recipients are refused",
    "5xx for a recipient that doesn't exist",
    "account",
)
def _unknown(session: Session) -> str:
    return _recipient(session, f"nobody-{session.run}@{session.login.domain}")


def _recipient(session: Session, address: str) -> str:
    with session.smtp() as (_wire, smtp):
        smtp.ehlo()
        smtp.command("MAIL FROM:<>")
        reply = smtp.ask(f"RCPT TO:<{address}>")
        return need(reply.refused, str(reply))


# Submission: what our own people meet


def _login(session: Session, port: int) -> str:
    with session.submission(port):
        return f"logged in as {session.login.address}"


@check("submission465.login", "Login on port 465", "the login succeeds over TLS", "account")
def _login465(session: Session) -> str:
    return _login(session, session.ports.submissions)


@check("submission587.login", "Login on port 587", "the login succeeds over STARTTLS", "account")
def _login587(session: Session) -> str:
    return _login(session, session.ports.submission)


@check(
    "submission.no_auth_before_tls",
    "Port 587 needs TLS for passwords",
    "AUTH is neither offered nor accepted",
)
def _no_auth_before_tls(session: Session) -> str:
    with session.wire(session.ports.submission) as wire:
        smtp = Smtp(wire, session.name)
        need("AUTH" not in smtp.ehlo(), "AUTH is offered")
        reply = smtp.ask("AUTH PLAIN")
        return need(reply.refused, str(reply))


@check(
    "submission.forged_sender_refused",
    "Nobody sends as somebody else",
    "5xx for another account's envelope sender",
    "account",
    "second_account",
)
def _forged_sender(session: Session) -> str:
    with session.submission(session.ports.submissions) as smtp:
        reply = smtp.ask(f"MAIL FROM:<{session.second_account}>")
        if reply.code == 250:  # Postfix says it at the recipient
            reply = smtp.ask(f"RCPT TO:<{session.login.address}>")
        return need(reply.refused, str(reply))


@check(
    "submission.forged_from_refused",
    "Nobody writes as somebody else",
    "5xx for another account in From",
    "account",
    "second_account",
)
def _forged_from(session: Session) -> str:
    me = session.login.address
    with session.submission(session.ports.submissions) as smtp:
        smtp.command(f"MAIL FROM:<{me}>")
        smtp.command(f"RCPT TO:<{me}>")
        smtp.command("DATA", (354,))
        subject = f"{session.run}-forged-from"
        smtp.send_message(session.message(me, subject, author=session.second_account))
        reply = smtp.reply()
        return need(reply.refused, str(reply))


# Mailboxes


@check("imap.login", "Login on port 993", "the login succeeds over TLS", "account")
def _imap(session: Session) -> str:
    with session.imap():
        return f"logged in as {session.login.address}"


@check(
    "imap.no_cleartext_login",
    "Port 143 needs TLS for passwords",
    "LOGINDISABLED and STARTTLS, no AUTH",
)
def _imap_cleartext(session: Session) -> str:
    with session.wire(session.ports.imap) as wire:
        offered = Imap(wire).capabilities()
    auth = {word for word in offered if word.startswith("AUTH=")}
    return need({"LOGINDISABLED", "STARTTLS"} <= offered and not auth, " ".join(sorted(offered)))


@check("pop3.login", "Login on port 995", "the login succeeds over TLS", "account")
def _pop3(session: Session) -> str:
    with session.pop3() as pop3:
        return pop3.login(session.login.address, session.login.password)


@check("sieve.login", "Login on port 4190", "the login succeeds over STARTTLS", "account")
def _sieve(session: Session) -> str:
    with session.sieve() as sieve:
        return sieve.login(session.login.address, session.login.password)


@check("tls.same_certificate", "All ports show one certificate", "one fingerprint on all ports")
def _same_certificate(session: Session) -> str:
    shown = session.certificates()
    said = ", ".join(f"{port}: {fingerprint[:16]}" for port, fingerprint in shown.items())
    return need(len(set(shown.values())) == 1, said)


# The way of a mail


@check("local.delivery", "Mail to oneself arrives", "submitted on 465, read over IMAP", "account")
def _local_delivery(session: Session) -> str:
    subject = f"{session.run}-local"
    reply = session.submit(session.ports.submissions, session.login.address, subject)
    session.arrival(subject)
    return f"{reply}; arrived"


def _round_trip(session: Session, port: int) -> str:
    session.round_trip(port)
    return f"{session.echo_address} has answered"


@check(
    "roundtrip.465",
    "Mail sent on 465 is answered",
    "an answer in the inbox",
    "account",
    "echo_address",
)
def _round_trip465(session: Session) -> str:
    return _round_trip(session, session.ports.submissions)


@check(
    "roundtrip.587",
    "Mail sent on 587 is answered",
    "an answer in the inbox",
    "account",
    "echo_address",
)
def _round_trip587(session: Session) -> str:
    return _round_trip(session, session.ports.submission)


@check(
    "roundtrip.dkim_two_signatures",
    "The peer sees two good signatures",
    "rsa-sha256: pass, ed25519-sha256: pass, on mail from both ports",
    "account",
    "echo_address",
)
def _two_signatures(session: Session) -> str:
    good = {"rsa-sha256": "pass", "ed25519-sha256": "pass"}
    for port in (session.ports.submissions, session.ports.submission):
        seen = session.round_trip(port).peer.signatures(session.login.domain)
        said = ", ".join(f"{name}: {result}" for name, result in seen.items()) or "no signature"
        need(seen == good, f"port {port}: {said}")
    return said


@check(
    "roundtrip.spf",
    "The peer sees SPF pass, aligned",
    "pass, aligned",
    "account",
    "echo_address",
)
def _peer_spf(session: Session) -> str:
    seen = session.round_trip(session.ports.submissions).peer.spf
    return need(seen == "pass, aligned", seen)


@check("roundtrip.dmarc", "The peer sees DMARC pass", "pass", "account", "echo_address")
def _peer_dmarc(session: Session) -> str:
    seen = session.round_trip(session.ports.submissions).peer.dmarc
    return need(seen == "pass", seen)


@check(
    "roundtrip.tls",
    "The peer gets our mail over TLS",
    "TLSv1.2 or TLSv1.3",
    "account",
    "echo_address",
)
def _peer_tls(session: Session) -> str:
    seen = session.round_trip(session.ports.submissions).peer.tls
    return need(seen in ("TLSv1.2", "TLSv1.3"), seen or "no TLS")


@check(
    "roundtrip.authentication_results",
    "Our host judges the peer's mail",
    "Authentication-Results of this host with spf, dkim and dmarc pass",
    "account",
    "echo_address",
)
def _authentication_results(session: Session) -> str:
    seen = session.round_trip(session.ports.submissions).ours
    said = ", ".join(f"{method}={'/'.join(sorted(seen[method]))}" for method in sorted(seen))
    good = all(seen.get(method) == {"pass"} for method in ("spf", "dkim", "dmarc"))
    return need(good, said or f"no Authentication-Results of {session.target.host}")


# Last, since the host slows down who tries wrong passwords


@check("submission.wrong_password_refused", "A wrong password is refused", "535", "account")
def _wrong_password(session: Session) -> str:
    try:
        with session.submission(session.ports.submissions, password=f"wrong-{session.run}"):
            pass
    except Refused as exc:
        return need(exc.reply.code == 535, str(exc.reply))
    raise ProbeError("the login succeeds")
