# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) 2026, hikyaku.mail contributors
"""A mail host inside the test process, with good manners or with named faults."""

from __future__ import annotations

import base64
import datetime
import json
import re
import socket
import socketserver
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.hikyaku.mail.plugins.module_utils.probe import Ports
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

NAME = "mx.example.test"
ALICE, PASSWORD = "alice@example.test", "right horse"
ECHO = "echo@peer.test"
GOOD_RESULTS = f"{NAME}; spf=pass (a (nested) one; spf=fail) smtp.mailfrom=x; dkim=pass; dmarc=pass"


def certificate(directory: Path, name: str) -> Path:
    """A self-signed certificate and its key in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    file = directory / f"{name}.pem"
    file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + built.public_bytes(serialization.Encoding.PEM)
    )
    return file


def server_context(pem: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    return context


@dataclass
class Host:
    """State that all services share; `faults` are names that the services look for."""

    context: ssl.SSLContext
    other_context: ssl.SSLContext
    faults: set[str] = field(default_factory=set)
    inbox: dict[int, bytes] = field(default_factory=dict)
    verdict: dict[str, Any] = field(default_factory=dict)
    results: str = GOOD_RESULTS
    later: int = 0  # how many mails are told to come again
    tries: int = 0

    def arrive(self, message: bytes) -> None:
        self.inbox[len(self.inbox) + 1] = message

    def take(self, message: bytes, recipients: list[str]) -> None:
        if recipients == [ECHO]:
            subject = re.search(rb"^Subject: (.*?)\r?$", message, re.MULTILINE)
            assert subject
            head = f"Authentication-Results: {self.results}\r\nSubject: Re: ".encode() + subject[1]
            self.arrive(head + b"\r\n\r\n" + json.dumps(self.verdict).encode())
        else:
            self.arrive(message)


GOOD_VERDICT: dict[str, Any] = {
    "dkim": [
        {"domain": "example.test", "algorithm": algorithm, "result": "pass"}
        for algorithm in ("rsa-sha256", "ed25519-sha256")
    ],
    "spf": {"result": "pass", "aligned": True},
    "dmarc": "pass",
    "tls": {"version": "TLSv1.3"},
}


class Service(socketserver.BaseRequestHandler):
    """One connection; subclasses speak a language in `talk`."""

    host: Host
    implicit_tls = False
    tls = False

    def handle(self) -> None:
        with suppress(OSError, ValueError):  # the probe has hung up
            if self.implicit_tls:
                self.secure()
            self.file = self.request.makefile("rb")
            self.talk()

    def secure(self) -> None:
        wrong = type(self).__name__ == "Imap" and "two certificates" in self.host.faults
        context = self.host.other_context if wrong else self.host.context
        self.request = context.wrap_socket(self.request, server_side=True)
        self.file = self.request.makefile("rb")
        self.tls = True

    def say(self, *lines: str) -> None:
        self.request.sendall("".join(f"{line}\r\n" for line in lines).encode())

    def hear(self) -> str:
        return self.file.readline().decode().rstrip("\r\n")

    def talk(self) -> None:
        raise NotImplementedError


class Smtp(Service):
    login_allowed = False

    def talk(self) -> None:
        faults, recipients, sender, user = self.host.faults, list[str](), "", ""
        self.say("220-two", "220 lines")
        while line := self.hear():
            verb, _, rest = line.partition(" ")
            verb = verb.upper()
            if verb == "EHLO":
                offers = [NAME, "SIZE 1000"]
                if not self.tls and "no starttls" not in faults:
                    offers.append("STARTTLS")
                if self.login_allowed and (self.tls or "cleartext auth" in faults):
                    offers.append("AUTH PLAIN")
                if not self.login_allowed and "auth on 25" in faults and self.tls:
                    offers.append("AUTH PLAIN")
                self.say(*(f"250-{offer}" for offer in offers), "250 HELP")
            elif verb == "STARTTLS":
                self.say("220 go")
                self.secure()
            elif verb == "AUTH":
                if not self.tls:
                    self.say("334 " if "cleartext auth" in faults else "530 TLS first")
                    continue
                _, user, password = base64.b64decode(rest.split(" ")[-1]).decode().split("\0")
                good = password == PASSWORD or "any password" in faults
                self.say("235 welcome" if good else "535 no")
            elif verb == "MAIL":
                sender = rest[6:-1]
                self.say("250 ok")
            elif verb == "RCPT":
                recipients.append(rest[4:-1])
                self.say(self.verdict(user, sender, recipients[-1]))
            elif verb == "DATA":
                self.say("354 go")
                data = b""
                while (part := self.file.readline()) != b".\r\n":
                    data += part.removeprefix(b".")
                self.say(self.accept(user, data, recipients))
                recipients = []
            else:
                self.say("502 what?")

    def verdict(self, user: str, sender: str, recipient: str) -> str:
        if user and sender != user and "forged sender" not in self.host.faults:
            return "553 5.7.1 not owned"
        if user or recipient == ALICE or "open relay" in self.host.faults:
            return "250 ok"
        return "554 relay access denied" if "peer" in recipient else "550 unknown"

    def accept(self, user: str, data: bytes, recipients: list[str]) -> str:
        self.host.tries += 1
        if self.host.later:
            self.host.later -= 1
            return "451 4.7.1 later"
        if b"From: " + user.encode() not in data and "forged from" not in self.host.faults:
            return "554 not you"
        if "black hole" not in self.host.faults:
            self.host.take(data, recipients)
        return "250 queued"


class Submission(Smtp):
    login_allowed = True


class Submissions(Submission):
    implicit_tls = True


class Imap(Service):
    def talk(self) -> None:
        self.say("* OK here")
        deleted: list[int] = []
        while line := self.hear():
            tag, verb, *rest = line.split(" ")
            if verb == "CAPABILITY":
                more = "AUTH=PLAIN" if "imap auth" in self.host.faults else "LOGINDISABLED"
                self.say(f"* CAPABILITY IMAP4rev1 STARTTLS {more}")
            elif verb == "STARTTLS":
                self.say(f"{tag} OK go")
                self.secure()
                continue
            elif verb == "LOGIN" and PASSWORD not in line:
                self.say(f"{tag} NO wrong password")
                continue
            elif verb == "SELECT" and "INBOX" not in line:
                self.say(f"{tag} NO no such mailbox")
                continue
            elif line.split(" ")[1:3] == ["UID", "SEARCH"]:
                wanted = line.split('"')[1].encode()
                found = [str(uid) for uid, mail in self.host.inbox.items() if wanted in mail]
                self.say(f"* SEARCH {' '.join(found)}".strip())
            elif rest[:1] == ["FETCH"]:
                mail = self.host.inbox[int(rest[1])]
                self.say(f"* 1 FETCH (UID {rest[1]} BODY[] {{{len(mail)}}}")
                self.request.sendall(mail)
                self.say(")")
            elif rest[:1] == ["STORE"]:
                deleted = [int(uid) for uid in rest[1].split(",")]
            elif verb == "EXPUNGE":
                for uid in deleted:
                    del self.host.inbox[uid]
            self.say(f"{tag} OK done")


class Imaps(Imap):
    implicit_tls = True


class Pop3s(Service):
    implicit_tls = True

    def talk(self) -> None:
        self.say("+OK here")
        while line := self.hear():
            self.say("-ERR no" if line.startswith("PASS") and PASSWORD not in line else "+OK fine")


class Sieve(Service):
    def talk(self) -> None:
        self.say('"SASL" ""', '"STARTTLS"', "OK here")
        while line := self.hear():
            if line == "STARTTLS":
                self.say("OK go")
                self.secure()
                self.say('"SASL" "PLAIN"', "OK here")
            else:
                secret = base64.b64decode(line.split('"')[-2]).decode()
                self.say('OK "welcome"' if secret.endswith(PASSWORD) else 'NO "wrong"')


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        # Several small answers in a row would each wait for the other side's acknowledgement.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection, address


@contextmanager
def listening(service: type[socketserver.BaseRequestHandler]) -> Iterator[int]:
    with Server(("127.0.0.1", 0), service) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@contextmanager
def running(host: Host) -> Iterator[Ports]:
    """All services of the host, each on a port of its own."""
    services: dict[str, type[Service]] = {
        "smtp": Smtp,
        "submission": Submission,
        "submissions": Submissions,
        "imap": Imap,
        "imaps": Imaps,
        "pop3s": Pop3s,
        "sieve": Sieve,
    }
    with ExitStack() as stack:
        ports = {
            name: stack.enter_context(listening(type(one.__name__, (one,), {"host": host})))
            for name, one in services.items()
        }
        yield Ports(**ports)


def rude(answer: Callable[[Any], None]) -> type[socketserver.BaseRequestHandler]:
    """A service that does only this with a connection."""

    class Rude(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with suppress(OSError):  # the probe has hung up
                answer(self.request)

    return Rude


def endless(data: bytes) -> Callable[[Any], None]:
    def answer(connection: Any) -> None:
        while True:
            connection.sendall(data)

    return answer


def silent(connection: Any) -> None:
    time.sleep(30)
