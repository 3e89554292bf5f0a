# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) 2026, hikyaku.mail contributors
from __future__ import annotations

import copy
import re
import time
from typing import Any

import pytest
from ansible_collections.hikyaku.mail.plugins.module_utils import model, names, passwords
from hypothesis import given, settings
from hypothesis import strategies as st

SALT22, SALT16, B43, B86 = "A" * 22, "s" * 16, "B" * 43, "C" * 86
ARGON2ID = f"$argon2id$v=19$m=65536,t=3,p=1${SALT22}${B43}"
BCRYPT = f"$2y$12${'e' * 53}"
SHA512 = f"$6$rounds=656000${SALT16}${B86}"
SHA256 = f"$5${SALT16}${B43}"
STRONG = [
    ("ARGON2ID", ARGON2ID),
    ("ARGON2I", ARGON2ID.replace("argon2id", "argon2i")),
    ("BLF-CRYPT", BCRYPT),
    ("BLF-CRYPT", BCRYPT.replace("$2y$", "$2a$")),
    ("BLF-CRYPT", BCRYPT.replace("$2y$", "$2b$")),
    ("SHA512-CRYPT", SHA512),
    ("SHA512-CRYPT", SHA512.replace("rounds=656000$", "")),
    ("SHA256-CRYPT", SHA256),
]


def good() -> dict[str, Any]:
    return {
        "mail_hostname": "mx1.example.com",
        "mail_profile": "public",
        "mail_postmaster": "postmaster@example.com",
        "mail_domains": [
            {"name": "example.com", "catch_all": "sales@example.com", "dmarc_policy": "reject"},
            {"name": "Bücher.Example.", "address_format": "[a-z]{2,9}"},
        ],
        "mail_accounts": [
            {
                "address": "Alice@example.com",
                "password_hash": ARGON2ID,
                "quota": "5G",
                "aliases": ["postmaster@example.com", "alice@bücher.example"],
            },
            {"address": "bob@xn--bcher-kva.example", "password_hash": f"{{CRYPT}}{SHA512}"},
            {"address": "robot@example.com", "password_hash": BCRYPT, "send_only": True},
            {"address": "dora@example.com", "state": "disabled", "quota": 0},
            {"address": "gone@elsewhere.example", "state": "absent"},
        ],
        "mail_aliases": [
            {"address": "sales@example.com", "to": ["alice@example.com", "Ext.Ern@Example.ORG"]},
            {"address": "all@example.com", "to": ["sales@example.com", "bob+x@bücher.example"]},
        ],
        "mail_login_networks": ["192.0.2.0/24", "2001:DB8::/32", "192.0.2.0/24", "198.51.100.7"],
        "mail_smarthost": {"host": "SMTP.example.net", "username": "me", "password": "s3cret"},
    }


def faults_of(site: dict[str, Any]) -> list[model.Fault]:
    return model.parse_site(site)[1]


def changed(**nouns: Any) -> dict[str, Any]:
    return good() | nouns


def account(**keys: Any) -> dict[str, Any]:
    """The good site with its first account changed; None takes a key away."""
    site = good()
    site["mail_accounts"][0] |= keys
    return site


def domain(**keys: Any) -> dict[str, Any]:
    site = good()
    site["mail_domains"][0] |= keys
    return site


def alias(**keys: Any) -> dict[str, Any]:
    site = good()
    site["mail_aliases"][0] |= keys
    return site


def smarthost(**keys: Any) -> dict[str, Any]:
    return changed(mail_smarthost={"host": "smtp.example.net"} | keys)


def plus(noun: str, *entries: Any) -> dict[str, Any]:
    site = good()
    site[noun] += entries
    return site


def test_a_good_site_has_no_faults_and_one_spelling() -> None:
    site, faults = model.parse_site(good())
    assert faults == []
    assert [entry.name for entry in site.domains] == ["example.com", "xn--bcher-kva.example"]
    alice, bob, robot, dora, gone = site.accounts
    assert (alice.address, alice.local_part, alice.domain) == (
        "alice@example.com",
        "alice",
        "example.com",
    )
    assert alice.password_hash == f"{{ARGON2ID}}{ARGON2ID}"
    assert alice.quota_bytes == 5 * 1024**3
    assert alice.aliases == ["postmaster@example.com", "alice@xn--bcher-kva.example"]
    assert bob.password_hash == f"{{SHA512-CRYPT}}{SHA512}"
    assert robot.send_only and dora.state == "disabled" and gone.state == "absent"
    assert site.aliases[0].to == ["alice@example.com", "Ext.Ern@example.org"]
    assert site.aliases[1].to == ["sales@example.com", "bob+x@xn--bcher-kva.example"]
    assert site.login_networks == ["192.0.2.0/24", "2001:db8::/32", "198.51.100.7/32"]
    assert site.smarthost == model.Smarthost("smtp.example.net", 587, "me", "s3cret")
    assert "s3cret" not in repr(site.smarthost)


def test_nouns_that_are_not_given_are_not_judged() -> None:
    assert faults_of({}) == []
    assert faults_of({"mail_domains": [{"name": "example.com"}]}) == []
    site, faults = model.parse_site({"mail_domains": [], "mail_accounts": [], "mail_aliases": []})
    assert faults == [] and site.login_networks == ["0.0.0.0/0", "::/0"]


@pytest.mark.parametrize("noun", model.NOUNS)
def test_null_is_no_entry(noun: str) -> None:
    needed = {"mail_hostname", "mail_postmaster", "mail_domains", "mail_accounts", "mail_aliases"}
    faults = faults_of(changed(**{noun: None}))
    assert bool(faults) == (noun in needed)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        (0, 0),
        ("none", 0),
        (None, 0),
        ("5G", 5 << 30),
        ("5g", 5 << 30),
        ("5GB", 5 << 30),
        ("5GiB", 5 << 30),
        ("500M", 500 << 20),
        ("1T", 1 << 40),
        ("2048K", 2 << 20),
        (1048576, 1 << 20),
        ("1048576", 1 << 20),
        ("1048576B", 1 << 20),
    ],
)
def test_quota(text: object, size: int) -> None:
    site, faults = model.parse_site(account(quota=text))
    assert faults == [] and site.accounts[0].quota_bytes == size


@pytest.mark.parametrize(("scheme", "text"), STRONG)
@pytest.mark.parametrize("prefix", ["", "{SCHEME}", "{scheme}", "{CRYPT}"])
def test_c027_strong_hashes(scheme: str, text: str, prefix: str) -> None:
    prefix = prefix.replace("SCHEME", scheme).replace("scheme", scheme.lower())
    assert passwords.password_hash(prefix + text) == f"{{{scheme}}}{text}"


# What the programs that the messages name made of "hello".
MADE = [
    # doveadm pw -s ARGON2ID, ARGON2I and SHA512-CRYPT (Dovecot 2.4)
    "{ARGON2ID}$argon2id$v=19$m=65536,t=3,p=1$Iom2ZdtY6rr9Nr3uHK2bJw"
    "$XTutrv4JJ/eGFDKQZ83PUryZrHvqFLeRLLUkQpQWfwo",
    "{ARGON2I}$argon2i$v=19$m=32768,t=4,p=1$/eIEMt4cI4eJ82QnYBujwA"
    "$xLmH1KY/X0XpedOM9lekIoLAG7l5C5f+ehdmpvDoRBg",
    "{SHA512-CRYPT}$6$DVkDwKCOvwtjGRCY$/uCev3c74HHYHBsYkJSnBFndAnok7F52xSLHiRVPEXQQtK2M3MdErCoZO5YO1"
    "uFtxTS0D8JMLfkWEKnsV33Cx0",
    # openssl passwd -6
    "$6$5QNK5dUTobff525y$FM78t3n9NwQo8CtVpkg9xax1tq1Jhjg32lAGhp6sQ7roWAGPrLqOLqncMDqOIgFfOGoPdZ83VhU"
    "KVuV9lUoSx/",
    # mkpasswd -m sha512crypt -R 656000
    "$6$rounds=656000$ZYTkJV33kfybNBkw$DEhsMQnLZbbfgyKEQ.iAWDwaCH9yCmfO1QwdaGReFFg33kPby27CM372QKE9r"
    "9p8CedL9u/bX8u.5yfD3eqfW/",
]


@pytest.mark.parametrize("text", MADE)
def test_c027_hashes_as_the_programs_make_them(text: str) -> None:
    assert passwords.password_hash(text).endswith(text)


HASHES = "ARGON2ID.*doveadm pw.*openssl passwd"
HIDDEN = r"a text that is no hash \(hidden\)"
# What stands in the inventory, what the fault may show of it, what it says is allowed.
CLEAR_TEXT = [
    ("", "an empty text", HASHES),
    ("a", HIDDEN, HASHES),
    ("hunter2", HIDDEN, HASHES),
    ("123456", HIDDEN, HASHES),
    ("Passw0rd", HIDDEN, HASHES),
    ("x" * 72, HIDDEN, HASHES),
    ("x" * 73, HIDDEN, HASHES),
    ("pässwörter", HIDDEN, HASHES),
    ("100%", HIDDEN, HASHES),
    ("it's", HIDDEN, HASHES),
    ("{braces}", HIDDEN, HASHES),
    ("{secret}word", HIDDEN, HASHES),
    ("$dollar$word", HIDDEN, HASHES),
    ("$6$", r"SHA512-CRYPT \(hidden\)", HASHES),
    (" " + ARGON2ID, HIDDEN, HASHES),
    (ARGON2ID + "\n", r"ARGON2ID \(hidden\)", HASHES),
]
WEAK = [
    ("{PLAIN}hunter2", r"\{PLAIN\}\(hidden\)", HASHES),
    ("{CLEARTEXT}hunter2", r"\{CLEARTEXT\}\(hidden\)", HASHES),
    ("{MD5}5f4dcc3b5aa765d6", r"\{MD5\}\(hidden\)", HASHES),
    ("{MD5-CRYPT}$1$salt$abc", r"\{MD5-CRYPT\}\(hidden\)", HASHES),
    ("$1$saltsalt$qjXMvbEw8oaL.CzflDtaK/", r"MD5-CRYPT \(hidden\)", HASHES),
    ("$apr1$saltsalt$qjXMvbEw8oaL.CzflDtaK/", r"APR1-MD5 \(hidden\)", HASHES),
    ("{CRYPT}$1$saltsalt$qjXMvbEw8oaL.CzflDtaK/", r"\{CRYPT\}\(hidden\)", HASHES),
    ("{CRYPT}ab0123456789.", r"\{CRYPT\}\(hidden\)", HASHES),
    ("{SSHA}abcdef", r"\{SSHA\}\(hidden\)", HASHES),
    ("{ssha512}abcdef", r"\{SSHA512\}\(hidden\)", HASHES),
    ("{CRAM-MD5}abcdef", r"\{CRAM-MD5\}\(hidden\)", HASHES),
    ("{PBKDF2}$1$salt$5000$abc", r"\{PBKDF2\}\(hidden\)", HASHES),
    ("{SCRAM-SHA-1}4096,x,y,z", r"\{SCRAM-SHA-1\}\(hidden\)", HASHES),
    ("$y$j9T$salt$" + B43, r"yescrypt \(hidden\)", HASHES),
    ("$7$salt$" + B43, r"scrypt \(hidden\)", HASHES),
    ("{SHA256-CRYPT}" + SHA512, r"\{SHA256-CRYPT\}\(hidden\)", HASHES),
    ("{ARGON2ID}" + BCRYPT, r"\{ARGON2ID\}\(hidden\)", HASHES),
    ("{PLAIN}" + BCRYPT, r"\{PLAIN\}\(hidden\)", HASHES),
    ("{ARGON2ID.b64}" + ARGON2ID, r"ARGON2ID \(hidden\)", HASHES),
    (BCRYPT.replace("$12$", "$09$"), r"BLF-CRYPT \(hidden\)", "cost=10 to 16, not 09"),
    (BCRYPT.replace("$12$", "$31$"), r"BLF-CRYPT \(hidden\)", "cost=10 to 16, not 31"),
    (BCRYPT.replace("$2y$", "$2x$"), r"BLF-CRYPT \(hidden\)", HASHES),
    (BCRYPT[:-1], r"BLF-CRYPT \(hidden\)", HASHES),
    (SHA512.replace("656000", "4999"), r"SHA512-CRYPT \(hidden\)", "rounds=5000 to 5000000"),
    (SHA512.replace("656000", "999999999"), r"SHA512-CRYPT \(hidden\)", "rounds=5000 to 5000000"),
    (SHA512[:-1], r"SHA512-CRYPT \(hidden\)", HASHES),
    (SHA512.replace(SALT16, "s"), r"SHA512-CRYPT \(hidden\)", HASHES),
    (SHA256.replace("$5$", "$5$rounds=1000$"), r"SHA256-CRYPT \(hidden\)", "rounds=5000"),
    (ARGON2ID.replace("m=65536", "m=1024"), r"ARGON2ID \(hidden\)", "m=7168 to 262144"),
    (ARGON2ID.replace("m=65536", "m=4194304"), r"ARGON2ID \(hidden\)", "m=7168 to 262144"),
    (ARGON2ID.replace("t=3", "t=0"), r"ARGON2ID \(hidden\)", "t=1 to 20"),
    (ARGON2ID.replace("p=1", "p=64"), r"ARGON2ID \(hidden\)", "p=1 to 16"),
    (ARGON2ID.replace("argon2id", "argon2d"), r"ARGON2D \(hidden\)", HASHES),
    (ARGON2ID.replace("v=19", "v=16"), r"ARGON2ID \(hidden\)", HASHES),
    (None, "nothing", HASHES),
    (12345678, "a number", HASHES),
    (True, "true or false", HASHES),
    (["hunter2"], "a list", HASHES),
    ({"hunter2": 1}, "a mapping", HASHES),
]


def refused(text: object, shown: str, allowed: str) -> None:
    (fault,) = faults_of(account(password_hash=text))
    assert fault.path == "mail_accounts[0].password_hash"
    assert_matches(fault, shown, allowed)
    if isinstance(text, str) and len(text) > 3:
        assert text not in str(fault) and text[-8:] not in str(fault)


def assert_matches(fault: model.Fault, value: str, allowed: str) -> None:
    assert re.fullmatch(value, fault.value), fault
    assert re.search(allowed, fault.allowed), fault


@pytest.mark.parametrize(("text", "shown", "allowed"), CLEAR_TEXT)
def test_c026_clear_text_password(text: str, shown: str, allowed: str) -> None:
    refused(text, shown, allowed)


@pytest.mark.parametrize(("text", "shown", "allowed"), WEAK)
def test_c027_weak_hash(text: object, shown: str, allowed: str) -> None:
    refused(text, shown, allowed)


FQDN, ADDRESS = re.escape(names.FQDN), re.escape(names.ADDRESS)
NOT_TEXT = [(7, "7"), (True, "True"), (1.5, "1.5"), ([], "a list"), ({}, "a mapping")]
LONG = "a" * 60 + ".example.com"

# A site with one fault, its path, what the fault shows and what it says is allowed.
Case = tuple[dict[str, Any], str, str, str]

HOSTNAMES: list[Case] = [
    (changed(mail_hostname=value), "mail_hostname", shown, allowed)
    for value, shown, allowed in [
        (None, "nothing", FQDN),
        ("", "''", FQDN),
        ("mx1", "'mx1'", "at least two labels"),
        ("localhost", "'localhost'", "at least two labels"),
        ("192.0.2.1", "'192.0.2.1'", "not an IP address"),
        ("2001:db8::1", "'2001:db8::1'", "letters, digits"),
        ("mx_1.example.com", "'mx_1.example.com'", "letters, digits"),
        ("-mx.example.com", "'-mx.example.com'", "letters, digits"),
        ("mx..example.com", "'mx..example.com'", "letters, digits"),
        ("mx1.example.com ", "'mx1.example.com '", "letters, digits"),
        ("mx1.example.com\n", r"'mx1.example.com\\n'", "letters, digits"),
        ("https://mx1.example.com", "'https://mx1.example.com'", "letters, digits"),
        (LONG, f"'{LONG}'", "at most 64 characters"),
        ("a" * 300, f"'{'a' * 76}\\.\\.\\.", "at most 253"),
        ("xn--a.example", "'xn--a.example'", "IDNA 2008"),
        ("☃.example", "'☃.example'", "IDNA 2008"),
        *((value, shown, FQDN) for value, shown in NOT_TEXT),
    ]
]
PROFILES: list[Case] = [
    (changed(mail_profile=value), "mail_profile", shown, "public, relay or private")
    for value, shown in [("privat", "'privat'"), ("", "''"), ("Public", "'Public'"), *NOT_TEXT]
]
DOMAINS: list[Case] = [
    *(
        (changed(mail_domains=value), "mail_domains", shown, "a list, each of it a mapping")
        for value, shown in [("example.com", "a text"), (7, "a number"), ({"name": 1}, "a mapping")]
    ),
    *(
        (plus("mail_domains", value), "mail_domains[2]", shown, "a mapping of name, dmarc_policy")
        for value, shown in [("third.example", "a text"), (None, "nothing"), ([], "a list")]
    ),
    *(
        (plus("mail_domains", {"name": value}), "mail_domains[2].name", shown, allowed)
        for value, shown, allowed in [
            (None, "nothing", FQDN),
            ("", "''", FQDN),
            ("example", "'example'", "two labels"),
            ("a b.example", "'a b.example'", "letters, digits"),
            ("@example.com", "'@example.com'", "letters, digits"),
            ("*.example.com", r"'\*.example.com'", "letters, digits"),
            ("192.0.2.1", "'192.0.2.1'", "not an IP address"),
            ("xn--a.example", "'xn--a.example'", "IDNA 2008"),
            *((value, shown, FQDN) for value, shown in NOT_TEXT),
        ]
    ),
    (plus("mail_domains", {}), "mail_domains[2].name", "nothing", FQDN),
    *(
        (domain(dmarc_policy=value), "mail_domains[0].dmarc_policy", shown, "none, quarantine or")
        for value, shown in [("block", "'block'"), ("Reject", "'Reject'"), *NOT_TEXT]
    ),
    *(
        (domain(address_format=value), "mail_domains[0].address_format", shown, "regular expr")
        for value, shown in [
            ("[a-z", r"'\[a-z'"),
            ("(a", r"'\(a'"),
            ("*a", r"'\*a'"),
            ("a{2,1}", r"'a\{2,1\}'"),
            ("", "''"),
            *NOT_TEXT,
        ]
    ),
    *(
        (domain(catch_all=value), "mail_domains[0].catch_all", shown, ADDRESS)
        for value, shown in [
            ("sales", "'sales'"),
            ("@example.com", "'@example.com'"),
            ("a+b@example.com", r"'a\+b@example.com'"),
            *NOT_TEXT,
        ]
    ),
]
ACCOUNTS: list[Case] = [
    *(
        (plus("mail_accounts", value), "mail_accounts[5]", shown, "a mapping of address, password")
        for value, shown in [
            ("zoe@example.com:hunter2", "a text"),
            (None, "nothing"),
            (["zoe@example.com"], "a list"),
        ]
    ),
    *(
        (
            plus("mail_accounts", {"address": value, "state": "absent"}),
            "mail_accounts[5].address",
            *rest,
        )
        for value, *rest in [
            (None, "nothing", ADDRESS),
            ("", "''", ADDRESS),
            ("zoe", "'zoe'", ADDRESS),
            ("zoe@", "'zoe@'", "domain"),
            ("@example.com", "'@example.com'", "local part"),
            ("zoe@@example.com", "'zoe@@example.com'", "local part"),
            ("zoe@[192.0.2.1]", r"'zoe@\[192.0.2.1\]'", "domain"),
            ("zoe@example_.com", "'zoe@example_.com'", "domain"),
            (".zoe@example.com", "'.zoe@example.com'", "single dots"),
            ("zoe.@example.com", "'zoe.@example.com'", "single dots"),
            ("z..oe@example.com", "'z..oe@example.com'", "single dots"),
            ("zoe x@example.com", "'zoe x@example.com'", "local part"),
            ("zoé@example.com", "'zoé@example.com'", "local part"),
            ('"zoe"@example.com', "'\"zoe\"@example.com'", "local part"),
            ("zoe+x@example.com", r"'zoe\+x@example.com'", r"without \+"),
            ("zoe%other@example.com", "'zoe%other@example.com'", "without .*%"),
            ("other!zoe@example.com", "'other!zoe@example.com'", "without .*!"),
            ("-zoe@example.com", "'-zoe@example.com'", "not beginning with -"),
            ("../zoe@example.com", "'../zoe@example.com'", "single dots"),
            ("etc/zoe@example.com", "'etc/zoe@example.com'", "letters, digits, hyphen"),
            ("o'zoe@example.com", '"o\'zoe@example.com"', "letters, digits, hyphen"),
            ("$zoe@example.com", r"'\$zoe@example.com'", "letters, digits, hyphen"),
            ("zoe\n@example.com", r"'zoe\\n@example.com'", "local part"),
            (f"{'z' * 65}@example.com", f"'{'z' * 65}@.*", "at most 64"),
            (f"{'z' * 64}@{'.'.join(['b' * 47] * 4)}", "'z{64}@.*", "at most 254"),
            *((value, shown, ADDRESS) for value, shown in NOT_TEXT),
        ]
    ),
    *(
        (account(quota=value), "mail_accounts[0].quota", shown, "5G or 500M")
        for value, shown in [
            ("5X", "'5X'"),
            ("", "''"),
            ("G", "'G'"),
            ("5 G", "'5 G'"),
            ("-5G", "'-5G'"),
            ("5.5G", "'5.5G'"),
            ("five", "'five'"),
            ("unlimited", "'unlimited'"),
            ("5G\n", r"'5G\\n'"),
            ("1e9", "'1e9'"),
            ("\u0665G", "'\u0665G'"),
            (5, "5"),
            ("5K", "'5K'"),
            (-1, "-1"),
            (1.5, "1.5"),
            (True, "True"),
            (False, "False"),
            (1 << 63, "9223372036854775808"),
            ("9999999T", "'9999999T'"),
            ([], "a list"),
            ({}, "a mapping"),
        ]
    ),
    *(
        (account(send_only=value), "mail_accounts[0].send_only", shown, "true or false")
        for value, shown in [
            ("yes", "'yes'"),
            ("true", "'true'"),
            (1, "1"),
            (0, "0"),
            ([], "a list"),
        ]
    ),
    *(
        (account(state=value), "mail_accounts[0].state", shown, "present, disabled or absent")
        for value, shown in [
            ("active", "'active'"),
            ("", "''"),
            ("Present", "'Present'"),
            *NOT_TEXT,
        ]
    ),
    *(
        (account(aliases=value), "mail_accounts[0].aliases", shown, "a list")
        for value, shown in [
            ("postmaster@example.com", "a text"),
            (7, "a number"),
            ({"a@example.com": 1}, "a mapping"),
        ]
    ),
    *(
        (
            account(aliases=["postmaster@example.com", value]),
            "mail_accounts[0].aliases[1]",
            shown,
            ADDRESS,
        )
        for value, shown in [
            (None, "nothing"),
            ("a", "'a'"),
            ("a+b@example.com", r"'a\+b@example.com'"),
            *NOT_TEXT,
        ]
    ),
]
ALIASES: list[Case] = [
    *(
        (plus("mail_aliases", value), "mail_aliases[2]", shown, "a mapping of address and to")
        for value, shown in [("a@example.com", "a text"), (None, "nothing"), ([], "a list")]
    ),
    *(
        (
            plus("mail_aliases", {"to": ["x@y.example"], "address": value}),
            "mail_aliases[2].address",
            *r,
        )
        for value, *r in [
            (None, "nothing", ADDRESS),
            ("info", "'info'", ADDRESS),
            ("@example.com", "'@example.com'", "local part"),
            ("in fo@example.com", "'in fo@example.com'", "local part"),
            ("in+fo@example.com", r"'in\+fo@example.com'", r"without \+"),
            ("in%fo@example.com", "'in%fo@example.com'", "without .*%"),
            ("-info@example.com", "'-info@example.com'", "not beginning with -"),
            *((value, shown, ADDRESS) for value, shown in NOT_TEXT),
        ]
    ),
    *(
        (alias(to=value), "mail_aliases[0].to", shown, "a list")
        for value, shown in [
            (None, "nothing"),
            ([], "nothing"),
            ("alice@example.com", "a text"),
            ({"alice@example.com": 1}, "a mapping"),
            (7, "a number"),
        ]
    ),
    *(
        (alias(to=["alice@example.com", value]), "mail_aliases[0].to[1]", shown, ADDRESS)
        for value, shown in [
            (None, "nothing"),
            ("", "''"),
            ("alice", "'alice'"),
            ("|/bin/sh", r"'\|/bin/sh'"),
            (":include:/etc/passwd", "':include:/etc/passwd'"),
            ("a@b@example.org", "'a@b@example.org'"),
            ("a@localhost", "'a@localhost'"),
            ("a@192.0.2.1", "'a@192.0.2.1'"),
            ("a b@example.org", "'a b@example.org'"),
            (f"{'z' * 65}@example.org", f"'{'z' * 65}@.*"),
            *NOT_TEXT,
        ]
    ),
]
NETWORKS: list[Case] = [
    *(
        (
            changed(mail_login_networks=value),
            "mail_login_networks",
            shown,
            "a list, each of it a netw",
        )
        for value, shown in [("192.0.2.0/24", "a text"), (7, "a number"), ({"a": 1}, "a mapping")]
    ),
    *(
        (changed(mail_login_networks=["192.0.2.0/24", value]), "mail_login_networks[1]", *rest)
        for value, *rest in [
            ("192.0.2.1/24", "'192.0.2.1/24'", "without host bits: 192.0.2.0/24"),
            ("2001:db8::1/64", "'2001:db8::1/64'", "without host bits: 2001:db8::/64"),
            ("192.0.2.0/33", "'192.0.2.0/33'", "a network such as"),
            ("2001:db8::/129", "'2001:db8::/129'", "a network such as"),
            ("192.0.2/24", "'192.0.2/24'", "a network such as"),
            ("256.0.0.0/8", "'256.0.0.0/8'", "a network such as"),
            ("192.0.2.0/", "'192.0.2.0/'", "a network such as"),
            ("fe80::%eth0/64", "'fe80::%eth0/64'", "a network such as"),
            ("example.com", "'example.com'", "a network such as"),
            ("any", "'any'", "a network such as"),
            ("", "''", "a network such as"),
            (None, "nothing", "a network such as"),
            *((value, shown, "a network such as") for value, shown in NOT_TEXT),
        ]
    ),
]
SMARTHOSTS: list[Case] = [
    *(
        (
            changed(mail_smarthost=value),
            "mail_smarthost",
            shown,
            "a mapping of host, port, username",
        )
        for value, shown in [("smtp.example.net", "a text"), ([], "a list"), (7, "a number")]
    ),
    *(
        (smarthost(host=value), "mail_smarthost.host", shown, FQDN)
        for value, shown in [
            (None, "nothing"),
            ("smtp", "'smtp'"),
            ("192.0.2.1", "'192.0.2.1'"),
            ("[smtp.example.net]", r"'\[smtp.example.net\]'"),
            ("smtp.example.net:587", "'smtp.example.net:587'"),
            *NOT_TEXT,
        ]
    ),
    *(
        (smarthost(port=value), "mail_smarthost.port", shown, "1 to 65535")
        for value, shown in [
            (0, "0"),
            (-1, "-1"),
            (65536, "65536"),
            ("smtp", "'smtp'"),
            ("", "''"),
            ("0587", "'0587'"),
            (True, "True"),
            (587.0, "587.0"),
            ([], "a list"),
        ]
    ),
    *(
        (smarthost(username=value, password="x"), "mail_smarthost.username", shown, "without colon")
        for value, shown in [("", "''"), ("a:b", "'a:b'"), ("a\nb", r"'a\\nb'"), *NOT_TEXT]
    ),
    *(
        (smarthost(username="me", password=value), "mail_smarthost.password", shown, "control char")
        for value, shown in [
            ("", r"a text \(hidden\)"),
            ("hun\nter2", r"a text \(hidden\)"),
            (12345678, r"a number \(hidden\)"),
            (["hunter2"], r"a list \(hidden\)"),
        ]
    ),
]
UNKNOWN: list[Case] = [
    ({"mail_" + "acounts": []}, "mail_acounts", "unknown", "did you mean mail_accounts"),
    ({"mail_domain": "example.com"}, "mail_domain", "unknown", "did you mean mail_domains"),
    ({"mail_host_name": "x"}, "mail_host_name", "unknown", "did you mean mail_hostname"),
    ({"mail_zzz": "hunter2"}, "mail_zzz", "unknown", "mail_accounts.* and mail_antivirus$"),
    ({7: "x"}, "7", "unknown", "mail_hostname"),
    (domain(catchall="x@example.com"), "mail_domains[0].catchall", "unknown", "mean catch_all"),
    (domain(dmarc="none"), "mail_domains[0].dmarc", "unknown", "mean dmarc_policy"),
    (domain(zzz=1), "mail_domains[0].zzz", "unknown", "name, .* and catch_all$"),
    (account(qouta="5G"), "mail_accounts[0].qouta", "unknown", "did you mean quota"),
    (account(password="hunter2"), "mail_accounts[0].password", "unknown", "mean password_hash"),
    (account(alias=["x@example.com"]), "mail_accounts[0].alias", "unknown", "mean aliases"),
    (account(**{"send-only": True}), "mail_accounts[0].'send-only'", "unknown", "mean send_only"),
    (account(enabled=True), "mail_accounts[0].enabled", "unknown", "send_only and state"),
    (alias(adress="x"), "mail_aliases[0].adress", "unknown", "mean address"),
    (alias(target=["x"]), "mail_aliases[0].target", "unknown", "address and to"),
    (smarthost(pasword="hunter2"), "mail_smarthost.pasword", "unknown", "mean password"),
    (smarthost(tls=True), "mail_smarthost.tls", "unknown", "host, port, username and password"),
]
POSTMASTERS: list[Case] = [
    (changed(mail_postmaster=value), "mail_postmaster", shown, ADDRESS)
    for value, shown in [
        (None, "nothing"),
        ("", "''"),
        ("postmaster", "'postmaster'"),
        ("postmaster@localhost", "'postmaster@localhost'"),
        *NOT_TEXT,
    ]
]
C106 = [
    *HOSTNAMES,
    *PROFILES,
    *POSTMASTERS,
    *DOMAINS,
    *ACCOUNTS,
    *ALIASES,
    *NETWORKS,
    *SMARTHOSTS,
    *UNKNOWN,
]


@pytest.mark.parametrize(("site", "path", "value", "allowed"), C106)
def test_c106_variable_wrong_in_type_range_or_name(
    site: dict[str, Any], path: str, value: str, allowed: str
) -> None:
    faults = {fault.path: fault for fault in faults_of(site)}
    assert path in faults, list(map(str, faults.values()))
    assert_matches(faults[path], value, allowed)
    assert "hunter2" not in " ".join(map(str, faults.values()))


def test_c106_there_are_more_than_200_cases() -> None:
    assert len(C106) > 200


ONCE, RECEIVES = "each address once", "that an account or alias receives mail for"
DUPLICATES: list[Case] = [
    (
        plus("mail_domains", {"name": "EXAMPLE.com."}),
        "mail_domains[2].name",
        "'example.com'",
        r"each domain once \(mail_domains\[0\]\)",
    ),
    (
        plus("mail_domains", {"name": "xn--bcher-kva.example"}),
        "mail_domains[2].name",
        "'xn--bcher-kva.example'",
        "each domain once",
    ),
    (
        plus("mail_accounts", {"address": "ALICE@example.com", "password_hash": BCRYPT}),
        "mail_accounts[5].address",
        "'alice@example.com'",
        r"each account once \(mail_accounts\[0\]\)",
    ),
    (
        plus("mail_accounts", {"address": "alice@example.com", "state": "absent"}),
        "mail_accounts[5].address",
        "'alice@example.com'",
        "each account once",
    ),
    (
        plus("mail_aliases", {"address": "Sales@example.com", "to": ["x@y.example"]}),
        "mail_aliases[2].address",
        "'sales@example.com'",
        ONCE + r" \(it is mail_aliases\[0\].address\)",
    ),
    (
        plus("mail_aliases", {"address": "alice@example.com", "to": ["x@y.example"]}),
        "mail_aliases[2].address",
        "'alice@example.com'",
        ONCE,
    ),
    (
        plus("mail_aliases", {"address": "postmaster@example.com", "to": ["x@y.example"]}),
        "mail_aliases[2].address",
        "'postmaster@example.com'",
        ONCE + r" \(it is mail_accounts\[0\].aliases\)",
    ),
    (
        account(aliases=["postmaster@example.com", "alice@example.com", "alice@bücher.example"]),
        "mail_accounts[0].aliases",
        "'alice@example.com'",
        ONCE,
    ),
    (
        account(aliases=["postmaster@example.com", "dora@example.com"]),
        "mail_accounts[3].address",
        "'dora@example.com'",
        ONCE,
    ),
    (
        account(aliases=["postmaster@example.com", "sales@example.com"]),
        "mail_aliases[0].address",
        "'sales@example.com'",
        ONCE,
    ),
]
ELSEWHERE: list[Case] = [
    (
        plus("mail_accounts", {"address": "x@example.org", "password_hash": BCRYPT}),
        "mail_accounts[5].address",
        "'x@example.org'",
        "in one of mail_domains",
    ),
    (
        plus("mail_accounts", {"address": "x@sub.example.com", "state": "disabled"}),
        "mail_accounts[5].address",
        "'x@sub.example.com'",
        "in one of mail_domains",
    ),
    (
        account(aliases=["postmaster@example.com", "x@example.org"]),
        "mail_accounts[0].aliases",
        "'x@example.org'",
        "in one of mail_domains",
    ),
    (
        plus("mail_aliases", {"address": "x@example.org", "to": ["alice@example.com"]}),
        "mail_aliases[2].address",
        "'x@example.org'",
        "in one of mail_domains",
    ),
]
FORMATS: list[Case] = [
    (
        plus("mail_accounts", {"address": f"{local}@bücher.example", "password_hash": BCRYPT}),
        "mail_accounts[5].address",
        f"'{local}@xn--bcher-kva.example'",
        re.escape("'[a-z]{2,9}'"),
    )
    for local in ("x", "abcdefghij", "x1", "ab.cd")
]
TARGETS: list[Case] = [
    *(
        (domain(catch_all=value), "mail_domains[0].catch_all", f"'{value}'", RECEIVES)
        for value in (
            "nobody@example.com",
            "x@example.org",
            "robot@example.com",
            "gone@elsewhere.example",
        )
    ),
    *(
        (
            # Without a catch-all, which would take the mail.
            good()
            | {
                "mail_domains": [{"name": "example.com"}, {"name": "bücher.example"}],
                "mail_aliases": [{"address": "sales@example.com", "to": [value]}],
            },
            "mail_aliases[0].to",
            f"'{re.escape(value)}'",
            RECEIVES,
        )
        for value in (
            "nobody@example.com",
            "nobody+detail@example.com",
            "robot@example.com",
            "nobody@xn--bcher-kva.example",
        )
    ),
    # A catch-all takes what doesn't exist, not what exists and refuses mail.
    (alias(to=["robot@example.com"]), "mail_aliases[0].to", "'robot@example.com'", RECEIVES),
    *(
        (changed(mail_postmaster=value), "mail_postmaster", f"'{value}'", RECEIVES)
        for value in (
            "postmaster@example.org",
            "nobody@xn--bcher-kva.example",
            "robot@example.com",
        )
    ),
]
LOOP = "aliases that end somewhere"


def chain(*links: tuple[str, str], catch_all: str | None = None) -> dict[str, Any]:
    """Aliases from one local part to the other in example.com."""
    site = domain(catch_all=catch_all)
    site["mail_aliases"] = [
        {"address": f"{one}@example.com", "to": [f"{other}@example.com"]} for one, other in links
    ]
    return site


LOOPS: list[Case] = [
    (chain(("a", "a")), "mail_aliases[0].to", "a@example.com -> a@example.com", LOOP),
    (chain(("a", "A+x")), "mail_aliases[0].to", "a@example.com -> a@example.com", LOOP),
    (chain(("a", "b"), ("b", "a")), "mail_aliases[0].to", "a@.* -> b@.* -> a@.*", LOOP),
    (
        chain(("z", "alice"), ("a", "b"), ("b", "c"), ("c", "a")),
        "mail_aliases[1].to",
        "a@.* -> b@.* -> c@.* -> a@.*",
        LOOP,
    ),
    # Into a loop, but not of it.
    (chain(("i", "a"), ("a", "b"), ("b", "a")), "mail_aliases[1].to", "a@.* -> b@.* -> a@.*", LOOP),
    # By way of the catch-all.
    (
        chain(("a", "missing"), catch_all="a@example.com"),
        "mail_aliases[0].to",
        "a@example.com -> a@example.com",
        LOOP,
    ),
    (
        chain(("a", "missing"), ("b", "a"), catch_all="b@example.com"),
        "mail_aliases[0].to",
        "a@.* -> b@.* -> a@.*",
        LOOP,
    ),
    (
        chain(*((f"a{n}", f"a{(n + 1) % 5000}") for n in range(5000))),
        "mail_aliases[0].to",
        r"a0@.* -> a3@example.com -> \(4996 more\) -> a0@example.com",
        LOOP,
    ),
]
RELAY = good() | {"mail_profile": "relay", "mail_postmaster": "admin@example.org"}
CONTRADICTIONS: list[Case] = [
    (changed(mail_hostname="example.com"), "mail_hostname", "'example.com'", "no mail domain"),
    (
        changed(mail_hostname="Bücher.example"),
        "mail_hostname",
        "'xn--bcher-kva.example'",
        r"no mail domain itself \(mail_domains\[1\]\)",
    ),
    (RELAY, "mail_accounts", "entries", "mail_profile is relay"),
    (RELAY, "mail_aliases", "entries", "mail_profile is relay"),
    (changed(mail_domains=[]), "mail_domains", "nothing", "at least one .* is public"),
    (
        changed(mail_domains=[], mail_profile="private"),
        "mail_domains",
        "nothing",
        "at least one .* is private",
    ),
    (changed(mail_login_networks=[]), "mail_login_networks", "an empty list", "at least a network"),
    *(
        (
            changed(mail_profile="private", mail_login_networks=["192.0.2.0/24", network]),
            "mail_login_networks",
            f"'{network}'",
            "networks of your own, since mail_profile is private",
        )
        for network in ("0.0.0.0/0", "::/0")
    ),
    (
        changed(mail_profile="private", mail_login_networks=None),
        "mail_login_networks",
        "'::/0'",
        "since mail_profile is private",
    ),
    (smarthost(username="me"), "mail_smarthost.password", "nothing", "since username is given"),
    (smarthost(password="hunter2"), "mail_smarthost.username", "nothing", "since password is"),
    (smarthost(host="MX1.example.com"), "mail_smarthost.host", "'mx1.example.com'", "another host"),
]
C107 = [*DUPLICATES, *ELSEWHERE, *FORMATS, *TARGETS, *LOOPS, *CONTRADICTIONS]


@pytest.mark.parametrize(("site", "path", "value", "allowed"), C107)
def test_c107_conflicts(site: dict[str, Any], path: str, value: str, allowed: str) -> None:
    faults = {fault.path: fault for fault in faults_of(site)}
    assert path in faults, list(map(str, faults.values()))
    assert_matches(faults[path], value, allowed)
    assert "hunter2" not in " ".join(map(str, faults.values()))


@pytest.mark.parametrize(
    "site",
    [
        chain(("a", "b"), ("b", "c"), ("c", "alice")),
        chain(("a", "c"), ("b", "c"), ("c", "alice+spam")),
        chain(("a", "missing"), catch_all="alice@example.com"),
        chain(*((f"a{n}", f"a{n + 1}") for n in range(5000)), ("a5000", "alice")),
        changed(mail_postmaster="dora@example.com"),
        changed(mail_postmaster="Sales+x@example.com"),
        changed(mail_profile="private", mail_login_networks=["10.0.0.0/8"]),
        changed(mail_login_networks=["192.0.2.0/255.255.255.0"]),
        smarthost(port=465),
        smarthost(port="465", username="me", password="pass word"),
        {
            "mail_hostname": "relay.example.com",
            "mail_profile": "relay",
            "mail_postmaster": "admin@example.org",
            "mail_domains": [{"name": "example.com"}],
            "mail_accounts": [],
            "mail_aliases": [],
            "mail_login_networks": [],
        },
        # Who has gone leaves the address to others.
        plus(
            "mail_accounts",
            {"address": "eve@example.com", "state": "absent", "aliases": ["eva@example.com"]},
        )
        | {
            "mail_aliases": [
                {"address": "eve@example.com", "to": ["alice@example.com"]},
                {"address": "eva@example.com", "to": ["eve@example.com"]},
                {"address": "sales@example.com", "to": ["eva@example.com"]},
            ]
        },
    ],
)
def test_c107_what_only_looks_like_a_conflict(site: dict[str, Any]) -> None:
    assert faults_of(site) == []


def test_every_fault_comes_at_once() -> None:
    site = good()
    site |= {"mail_hostname": "mx1", "mail_acounts": [], "mail_profile": "privat"}
    site["mail_domains"].append({"name": "a_b.example"})
    site["mail_accounts"][0] |= {"quota": "5X", "qouta": 1, "password_hash": "hunter2"}
    site["mail_accounts"][1]["state"] = "gone"
    site["mail_aliases"][1]["to"] = ["all@example.com", "a@@b"]
    assert [fault.path for fault in faults_of(site)] == [
        "mail_acounts",
        "mail_hostname",
        "mail_profile",
        "mail_domains[2].name",
        "mail_accounts[0].qouta",
        "mail_accounts[0].password_hash",
        "mail_accounts[0].quota",
        "mail_accounts[1].state",
        "mail_aliases[1].to[1]",
        "mail_aliases[1].to",
    ]


def test_a_domain_that_cannot_be_read_has_no_echoes() -> None:
    site = good()
    site["mail_domains"][0]["name"] = "example_.com"
    assert {fault.path for fault in faults_of(site)} == {"mail_domains[0].name"}
    assert {fault.path for fault in faults_of(good() | {"mail_domains": 7})} == {"mail_domains"}


def test_the_input_stays_as_it_is() -> None:
    site, before = good(), good()
    model.parse_site(site)
    assert site == before


LOCAL = st.from_regex(r"[a-zA-Z0-9_]{1,8}(\.[a-z0-9-]{1,4})?", fullmatch=True)
DOMAIN = st.sampled_from(["example.com", "EXAMPLE.com.", "Bücher.example", "xn--bcher-kva.example"])


@st.composite
def sites(draw: st.DrawFn) -> dict[str, Any]:
    addresses = draw(
        st.lists(
            st.tuples(LOCAL, DOMAIN).map("@".join),
            min_size=1,
            max_size=12,
            unique_by=lambda address: "@".join(names.mail_address(address.lower())),
        )
    )
    half = draw(st.integers(1, len(addresses)))
    quotas = st.sampled_from([None, 0, "0", "none", "5G", "1024M", 1 << 40])
    accounts = [
        {
            "address": address,
            "password_hash": draw(st.sampled_from([text for _scheme, text in STRONG])),
            "quota": draw(quotas),
            "state": draw(st.sampled_from([None, "present", "disabled"])),
            "send_only": index > 0 and draw(st.booleans()),
        }
        for index, address in enumerate(addresses[:half])
    ]
    aliases = [
        {"address": address, "to": [addresses[0], draw(st.sampled_from(["X@Y.example", "a@b.c"]))]}
        for address in addresses[half:]
    ]
    return {
        "mail_hostname": draw(st.sampled_from(["MX1.example.com", "mx.bücher.example."])),
        "mail_profile": "public",
        "mail_postmaster": addresses[0],
        "mail_domains": [{"name": "Example.com."}, {"name": "bücher.example"}],
        "mail_accounts": accounts,
        "mail_aliases": aliases,
        "mail_smarthost": draw(st.sampled_from([{}, {"host": "A.example.", "port": "25"}])),
    }


@given(sites())
def test_normal_form_is_idempotent(nouns: dict[str, Any]) -> None:
    site, faults = model.parse_site(nouns)
    assert faults == []
    again, faults = model.parse_site(site.nouns())
    assert faults == []
    assert again == site and again.nouns() == site.nouns()


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [*model.ACCOUNT_KEYS, *model.ALIAS_KEYS, *model.DOMAIN_KEYS, *model.SMARTHOST_KEYS]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=300)
@given(st.dictionaries(st.sampled_from([*model.NOUNS, "mail_x"]), JUNK))
def test_c106_junk_gives_faults_and_never_an_exception(nouns: dict[str, Any]) -> None:
    before = copy.deepcopy(nouns)
    site, faults = model.parse_site(nouns)
    assert repr(nouns) == repr(before)
    assert all(fault.path and fault.value and fault.allowed for fault in faults)
    if not faults and nouns.get("mail_domains"):
        assert model.parse_site(site.nouns())[0] == site


def test_100_000_accounts_take_seconds() -> None:
    site = good()
    site["mail_accounts"] += [
        {"address": f"u{n}@example.com", "password_hash": ARGON2ID, "quota": "5G"}
        for n in range(100_000)
    ]
    start = time.process_time()
    parsed, faults = model.parse_site(site)
    assert faults == [] and len(parsed.accounts) == 100_005
    assert time.process_time() - start < 6  # one and a half on an idle core
