# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) 2026, hikyaku.mail contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A dialogue with a server, line by line: it ends in time, is bounded, and is written down."""

from __future__ import annotations

import hashlib
import socket
import ssl
import time
from collections import deque
from dataclasses import dataclass, field

LONGEST_LINE = 64 * 1024
LONGEST_LITERAL = 16 * 1024 * 1024
LONGEST_REPLY = 1000  # lines
SHOWN_LINES = 30  # at each end
SHOWN_LENGTH = 300


class ProbeError(Exception):
    """What a server did, or failed to do, in words for a person."""


@dataclass(frozen=True, slots=True)
class Target:
    """A mail host: the name it must prove, where to reach it, and whom to trust about it."""

    host: str
    address: str
    trust: ssl.SSLContext


@dataclass(slots=True)
class Transcript:
    """The beginning and the end of what was said, without what must stay secret."""

    secrets: tuple[str, ...] = ()
    _first: list[str] = field(default_factory=list)
    _last: deque[str] = field(default_factory=lambda: deque(maxlen=SHOWN_LINES))
    _left_out: int = 0

    def add(self, who: str, text: str) -> None:
        for secret in self.secrets:
            text = text.replace(secret, "********")
        line = f"{who}: {text[:SHOWN_LENGTH]}"
        if len(self._first) < SHOWN_LINES:
            self._first.append(line)
            return
        self._left_out += len(self._last) == SHOWN_LINES
        self._last.append(line)

    @property
    def lines(self) -> list[str]:
        gap = [f"-: {self._left_out} lines left out"] if self._left_out else []
        return [*self._first, *gap, *self._last]


def trust(ca_file: str | None) -> ssl.SSLContext:
    """The system's certificate authorities, and those of a file."""
    context = ssl.create_default_context()
    if ca_file:
        context.load_verify_locations(ca_file)
    return context


def anybody() -> ssl.SSLContext:
    """To look at a certificate, whatever it is: nothing secret may be sent this way."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


class Wire:
    """A connection that reads lines and literals until a deadline (of time.monotonic)."""

    def __init__(self, target: Target, port: int, deadline: float, transcript: Transcript) -> None:
        self.port = port
        self._target, self._deadline, self._transcript = target, deadline, transcript
        self._buffer = b""
        transcript.add("-", f"connect to {target.address} port {port}")
        try:
            self._socket = socket.create_connection((target.address, port), self._remaining())
        except OSError as exc:
            raise ProbeError(f"port {port}: no connection: {_words(exc)}") from exc

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def secure(self, context: ssl.SSLContext) -> None:
        """Put TLS under what follows."""
        if self._buffer:
            raise ProbeError(f"port {self.port}: said something between STARTTLS and TLS")
        try:
            self._socket.settimeout(self._remaining())
            self._socket = context.wrap_socket(self._socket, server_hostname=self._target.host)
        except OSError as exc:  # ssl.SSLError is one
            raise ProbeError(f"port {self.port}: no TLS: {_words(exc)}") from exc
        self._transcript.add("-", f"{self.tls_version}, certificate {self.fingerprint}")

    @property
    def tls_version(self) -> str:
        return (isinstance(self._socket, ssl.SSLSocket) and self._socket.version()) or "no TLS"

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the certificate that the server has shown."""
        shown = isinstance(self._socket, ssl.SSLSocket) and self._socket.getpeercert(True)
        return hashlib.sha256(shown).hexdigest() if shown else "none"

    def send(self, line: str, shown: str | None = None) -> None:
        self._transcript.add("C", line if shown is None else shown)
        self.send_bytes(line.encode() + b"\r\n")

    def send_bytes(self, data: bytes) -> None:
        try:
            self._socket.settimeout(self._remaining())
            self._socket.sendall(data)
        except OSError as exc:
            raise ProbeError(f"port {self.port}: can't send: {_words(exc)}") from exc

    def line(self) -> str:
        while b"\n" not in self._buffer:
            if len(self._buffer) > LONGEST_LINE:
                raise ProbeError(f"port {self.port}: a line of more than {LONGEST_LINE} bytes")
            self._receive()
        line, self._buffer = self._buffer.split(b"\n", 1)
        text = line.rstrip(b"\r").decode("utf-8", "backslashreplace")
        self._transcript.add("S", text)
        return text

    def take(self, size: int) -> bytes:
        """So many bytes as they are, such as an IMAP literal."""
        if size > LONGEST_LITERAL:
            raise ProbeError(f"port {self.port}: wants to send {size} bytes")
        while len(self._buffer) < size:
            self._receive()
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        self._transcript.add("S", f"[{size} bytes]")
        return data

    def _receive(self) -> None:
        try:
            self._socket.settimeout(self._remaining())
            data = self._socket.recv(64 * 1024)
        except OSError as exc:
            raise ProbeError(f"port {self.port}: no answer: {_words(exc)}") from exc
        if not data:
            raise ProbeError(f"port {self.port}: the server closed the connection")
        self._buffer += data

    def _remaining(self) -> float:
        remaining = self._deadline - time.monotonic()
        if remaining <= 0:
            raise ProbeError(f"port {self.port}: not done in time")
        return remaining


def _words(exc: OSError) -> str:
    if isinstance(exc, ssl.SSLCertVerificationError):
        return f"certificate refused: {exc.verify_message}"
    if isinstance(exc, TimeoutError):
        return "not in time"
    return exc.strerror or str(exc)
