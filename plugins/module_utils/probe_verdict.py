# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) 2026, hikyaku.mail contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a mail says about its own way: our verdict on it, and a peer's verdict on ours."""

from __future__ import annotations

import email
import email.policy
import json
import re
from email.message import EmailMessage
from typing import Any

from .probe_wire import ProbeError


def parse(raw: bytes) -> EmailMessage:
    return email.message_from_bytes(raw, policy=email.policy.default)


def authentication_results(message: EmailMessage, authserv_id: str) -> dict[str, set[str]]:
    """The results of each method, from the fields under this name only (RFC 8601, section 5)."""
    results: dict[str, set[str]] = {}
    for field in message.get_all("Authentication-Results", []):
        name, *verdicts = _without_comments(str(field)).split(";")
        if name.strip().split(" ")[0].lower() != authserv_id.lower():
            continue
        for verdict in verdicts:
            if found := re.match(r"\s*([\w-]+)(?:/\d+)?\s*=\s*(\w+)", verdict):
                results.setdefault(found[1].lower(), set()).add(found[2].lower())
    return results


def _without_comments(text: str) -> str:
    """RFC 5322 comments nest, and may hold anything, so also what looks like a verdict."""
    depth, quoted, escaped, kept = 0, False, False, []
    for char in text:
        if escaped or char == "\\":
            escaped = not escaped
        elif char == '"' and not depth:
            quoted = not quoted
        elif char == "(" and not quoted:
            depth += 1
        elif char == ")" and depth:
            depth -= 1
            continue
        if not depth:
            kept.append(char)
    return "".join(kept)


class PeerVerdict:
    """The JSON that a peer answers a mail with: how it came in there."""

    def __init__(self, message: EmailMessage) -> None:
        try:
            verdict = json.loads(message.get_content())
        except (ValueError, KeyError, LookupError) as exc:
            raise ProbeError(f"the answer is not JSON: {exc}") from exc
        if not isinstance(verdict, dict):
            raise ProbeError("the answer is not a JSON object")
        self._verdict: dict[str, Any] = verdict

    def _part(self, name: str) -> dict[str, Any]:
        part = self._verdict.get(name)
        return part if isinstance(part, dict) else {}

    def signatures(self, domain: str) -> dict[str, str]:
        """Verdicts on the signatures of a domain, by algorithm."""
        found = self._verdict.get("dkim")
        return {
            str(signature.get("algorithm")): str(signature.get("result"))
            for signature in (found if isinstance(found, list) else [])
            if isinstance(signature, dict) and signature.get("domain") == domain
        }

    @property
    def spf(self) -> str:
        part = self._part("spf")
        return f"{part.get('result')}, {'aligned' if part.get('aligned') else 'not aligned'}"

    @property
    def dmarc(self) -> str:
        return str(self._verdict.get("dmarc"))

    @property
    def tls(self) -> str:
        return str(self._part("tls").get("version"))
