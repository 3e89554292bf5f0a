# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) 2026, hikyaku.mail contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Host names and mail addresses in one spelling: A-labels, lower case, no trailing dot."""

from __future__ import annotations

import importlib
import re
from functools import lru_cache
from types import ModuleType

# Letters, digits and inner hyphens (RFC 1123 section 2.1).
_LABEL = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)")
# Dot-string (RFC 5321 section 4.1.2). Quoted local parts are not offered.
_DOT_STRING = re.compile(r"[\w!#$%&'*+/=?^`{|}~-]+(?:\.[\w!#$%&'*+/=?^`{|}~-]+)*", re.ASCII)

FQDN = "a fully qualified host name such as mx1.example.com"
ADDRESS = "a mail address such as alice@example.com"


class InvalidName(ValueError):
    """The text says what is allowed."""


@lru_cache(maxsize=65536)
def host_name(text: str) -> str:
    """A fully qualified name as A-labels (IDNA 2008); raises InvalidName."""
    name = (text if text.isascii() else _to_a_labels(text)).lower().removesuffix(".")
    labels = name.split(".")
    if len(name) > 253:  # RFC 1035 section 3.1: 255 octets on the wire
        raise InvalidName(f"{FQDN}, of at most 253 characters")
    if not all(map(_LABEL.fullmatch, labels)):
        raise InvalidName(f"{FQDN}, of letters, digits and inner hyphens, 63 to a label")
    if len(labels) < 2:
        raise InvalidName(f"{FQDN}, of at least two labels")
    if labels[-1].isdigit():  # RFC 3696 section 2
        raise InvalidName(f"{FQDN}, not an IP address")
    for label in labels:
        if label.startswith("xn--"):
            _check_a_label(label)
    return name


def mail_address(text: str) -> tuple[str, str]:
    """Local part as it stands and domain as A-labels; raises InvalidName."""
    local, at, domain = text.rpartition("@")
    if not at:
        raise InvalidName(ADDRESS)
    if not _DOT_STRING.fullmatch(local):
        raise InvalidName(
            f"{ADDRESS}, its local part of letters, digits and !#$%&'*+-/=?^_`{{|}}~, "
            "with single dots between them"
        )
    if len(local) > 64:  # RFC 5321 section 4.5.3.1.1
        raise InvalidName(f"{ADDRESS}, its local part of at most 64 characters")
    try:
        domain = host_name(domain)
    except InvalidName as fault:
        raise InvalidName(f"{ADDRESS}, its domain {fault}") from None
    if len(local) + 1 + len(domain) > 254:  # RFC 5321 section 4.5.3.1.3, without < and >
        raise InvalidName(f"{ADDRESS}, of at most 254 characters")
    return local, domain


def _to_a_labels(text: str) -> str:
    # Python's own codec knows IDNA 2003 only, which maps some letters to other names.
    idna = _idna()
    if idna is None:
        raise InvalidName(
            "A-labels (xn--...), or the Python library idna that makes them of other letters "
            "(Debian: apt install python3-idna; a virtual environment: pip install idna)"
        )
    try:
        # UTS 46 maps upper case and other full stops; it keeps sharp s and final sigma.
        return str(idna.encode(text, uts46=True).decode("ascii"))
    except UnicodeError as error:
        raise InvalidName(f"{FQDN}, valid by IDNA 2008: {error}") from None


def _check_a_label(label: str) -> None:
    """What claims to be an A-label is one (RFC 5891 section 5.4)."""
    try:
        u_label = label[4:].encode("ascii").decode("punycode")
        if u_label.isascii() or f"xn--{u_label.encode('punycode').decode('ascii')}" != label:
            raise UnicodeError("not the shortest spelling")
        if idna := _idna():
            idna.ulabel(label)
    except UnicodeError as error:
        raise InvalidName(f"{FQDN}, {label} valid by IDNA 2008: {error}") from None


@lru_cache(maxsize=1)
def _idna() -> ModuleType | None:
    """The library, if it is here: only names beyond ASCII need it."""
    try:
        return importlib.import_module("idna")
    except ImportError:
        return None
