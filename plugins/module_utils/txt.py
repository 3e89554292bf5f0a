# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) 2026, hikyaku.mail contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The text of TXT records, one character per octet: strings of at most 255, and zone file form."""

from __future__ import annotations

import re
from collections.abc import Iterable

MAX_STRING = 255  # RFC 1035 section 3.3: a length octet and that many octets

_TOKEN = re.compile(r'"((?:[^"\\]|\\\d{3}|\\\D)*)"|((?:[^\s"\\]|\\\d{3}|\\\D)+)|\s+')
_ESCAPE = re.compile(r"\\(\d{3}|\D)", re.DOTALL)


def split(text: str) -> list[str]:
    """Cut a text into strings that fit in a TXT record; join() is the way back."""
    if bad := [character for character in text if ord(character) > 255]:
        raise ValueError(f"{bad[0]!r} is not an octet")
    return [text[at : at + MAX_STRING] for at in range(0, len(text), MAX_STRING)] or [""]


def join(strings: Iterable[str]) -> str:
    """The text that receivers see: joined without a blank (RFC 6376 section 3.6.2.2)."""
    return "".join(strings)


def to_zone(strings: Iterable[str]) -> str:
    """Strings in the form of zone files (RFC 1035 section 5.1)."""
    return " ".join(f'"{_escape(string)}"' for string in strings)


def from_zone(text: str) -> list[str]:
    """Read strings in the form of zone files."""
    strings, at = [], 0
    while at < len(text):
        token = _TOKEN.match(text, at)
        if token is None:
            raise ValueError(f"not a string at character {at + 1}: {text[at : at + 20]!r}")
        at = token.end()
        if token.lastindex is not None:
            strings.append(_ESCAPE.sub(_unescape, token[token.lastindex]))
    if any(len(string) > MAX_STRING for string in strings):
        raise ValueError(f"a string of more than {MAX_STRING} octets")
    return strings


def _escape(string: str) -> str:
    return "".join(
        f"\\{character}"
        if character in '"\\'
        else character
        if " " <= character <= "~"
        else f"\\{ord(character):03d}"
        for character in string
    )


def _unescape(escape: re.Match[str]) -> str:
    if not escape[1].isdigit():
        return escape[1]
    if int(escape[1]) > 255:
        raise ValueError(f"\\{escape[1]} is not an octet")
    return chr(int(escape[1]))
