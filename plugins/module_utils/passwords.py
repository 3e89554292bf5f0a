# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) 2026, hikyaku.mail contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Password hashes as Dovecot stores them, {SCHEME}hash: strong ones only."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_B64 = "[A-Za-z0-9./]"  # crypt(5)'s alphabet


@dataclass(frozen=True)
class _Scheme:
    name: str
    pattern: re.Pattern[str]
    # From the group's name to lowest and highest value: too low is guessed soon, too high
    # makes a login cost seconds or more memory than Dovecot's auth process may have.
    costs: dict[str, tuple[int, int]] = field(default_factory=dict)


def _argon2(name: str) -> _Scheme:
    return _Scheme(
        name,
        re.compile(
            rf"\${name.lower()}\$v=19\$m=(?P<m>\d{{1,9}}),t=(?P<t>\d{{1,9}}),p=(?P<p>\d{{1,9}})"
            r"\$[A-Za-z0-9+/]{11,64}\$[A-Za-z0-9+/]{22,86}"
        ),
        {"m": (7168, 262144), "t": (1, 20), "p": (1, 16)},
    )


def _sha_crypt(name: str, number: int, length: int) -> _Scheme:
    return _Scheme(
        name,
        re.compile(
            rf"\${number}\$(?:rounds=(?P<rounds>\d{{1,9}})\$)?{_B64}{{8,16}}\${_B64}{{{length}}}"
        ),
        {"rounds": (5000, 5_000_000)},  # 5000 is what a hash without rounds= has
    )


_SCHEMES = (
    _argon2("ARGON2ID"),
    _argon2("ARGON2I"),
    _Scheme(
        "BLF-CRYPT", re.compile(rf"\$2[aby]\$(?P<cost>\d\d)\${_B64}{{53}}"), {"cost": (10, 16)}
    ),
    _sha_crypt("SHA512-CRYPT", 6, 86),
    _sha_crypt("SHA256-CRYPT", 5, 43),
)
_NAMES = ", ".join(scheme.name for scheme in _SCHEMES)
ALLOWED = (
    f"a password hash ({_NAMES}): make one with 'doveadm pw -s ARGON2ID', "
    "or 'openssl passwd -6' where there is no Dovecot"
)

# What may be shown of a refused value: its scheme, if it is one that we know by name. Anything
# else in braces or between dollar signs could be part of a password in clear text.
_WEAK_PREFIXES = frozenset(
    {
        "PLAIN",
        "CLEAR",
        "CLEARTEXT",
        "PLAIN-TRUNC",
        "CRAM-MD5",
        "DIGEST-MD5",
        "HMAC-MD5",
        "SCRAM-SHA-1",
        "SCRAM-SHA-256",
        "LANMAN",
        "NTLM",
        "RPA",
        "SKEY",
        "OTP",
        "MD5",
        "MD5-CRYPT",
        "PLAIN-MD5",
        "LDAP-MD5",
        "SMD5",
        "SHA",
        "SHA1",
        "SSHA",
        "SHA256",
        "SSHA256",
        "SHA512",
        "SSHA512",
        "DES-CRYPT",
        "CRYPT",
        "PBKDF2",
    }
)
_CRYPT_IDS = {
    "1": "MD5-CRYPT",
    "apr1": "APR1-MD5",
    "md5": "SunMD5",
    "sha1": "SHA1-CRYPT",
    "2": "BLF-CRYPT",
    "2a": "BLF-CRYPT",
    "2b": "BLF-CRYPT",
    "2x": "BLF-CRYPT",
    "2y": "BLF-CRYPT",
    "5": "SHA256-CRYPT",
    "6": "SHA512-CRYPT",
    "7": "scrypt",
    "y": "yescrypt",
    "gy": "gost-yescrypt",
    "argon2d": "ARGON2D",
    "argon2i": "ARGON2I",
    "argon2id": "ARGON2ID",
}


class WeakHash(ValueError):
    """The text says what is allowed."""


def password_hash(text: str) -> str:
    """The hash with its {SCHEME}; raises WeakHash, whose text never contains the value."""
    prefix, body = _split(text)
    for scheme in _SCHEMES:
        match = scheme.pattern.fullmatch(body)
        if match and prefix in ("", "CRYPT", scheme.name):
            for name, (low, high) in scheme.costs.items():
                if match[name] is not None and not low <= int(match[name]) <= high:
                    raise WeakHash(f"{scheme.name} with {name}={low} to {high}, not {match[name]}")
            return f"{{{scheme.name}}}{body}"
    raise WeakHash(ALLOWED)


def shown(text: str) -> str:
    """What a message may say of a refused value."""
    prefix, body = _split(text)
    crypt_id = re.match(r"\$([a-z0-9]+)\$", body)
    if prefix in _WEAK_PREFIXES or any(prefix == scheme.name for scheme in _SCHEMES):
        return f"{{{prefix}}}(hidden)"
    if crypt_id and crypt_id[1] in _CRYPT_IDS:
        return f"{_CRYPT_IDS[crypt_id[1]]} (hidden)"
    return "a text that is no hash (hidden)" if text else "an empty text"


def _split(text: str) -> tuple[str, str]:
    match = re.fullmatch(r"\{([A-Za-z0-9.-]+)\}(.*)", text, re.DOTALL)
    return (match[1].upper(), match[2]) if match else ("", text)
