# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) 2026, hikyaku.mail contributors
from __future__ import annotations

import pytest
from ansible_collections.hikyaku.mail.plugins.module_utils import names
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("mx1.example.com", "mx1.example.com"),
        ("MX1.Example.COM", "mx1.example.com"),
        ("example.com.", "example.com"),
        ("Bücher.example", "xn--bcher-kva.example"),
        ("bücher.example.", "xn--bcher-kva.example"),
        ("BÜCHER.EXAMPLE", "xn--bcher-kva.example"),
        ("bu\u0308cher.example", "xn--bcher-kva.example"),  # u and combining diaeresis
        ("XN--BCHER-KVA.example", "xn--bcher-kva.example"),
        ("straße.example", "xn--strae-oqa.example"),  # IDNA 2003 would say strasse
        ("飛脚.example", "xn--w40al00c.example"),
        ("example.рф", "example.xn--p1ai"),
        ("example.xn--p1ai", "example.xn--p1ai"),
        ("mail\u3002example\uff0ecom", "mail.example.com"),  # other full stops
        (f"{'a' * 63}.example", f"{'a' * 63}.example"),
        ("1.2.3.example", "1.2.3.example"),
        ("a--b.example", "a--b.example"),
    ],
)
def test_c106_host_name_in_one_spelling(text: str, name: str) -> None:
    assert names.host_name(text) == name
    assert names.host_name(name) == name


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ("", "letters, digits"),
        (".", "letters, digits"),
        ("localhost", "at least two labels"),
        ("mx1", "at least two labels"),
        ("mx1.", "at least two labels"),
        ("mx1..example.com", "letters, digits"),
        (".example.com", "letters, digits"),
        ("example.com..", "letters, digits"),
        ("a_b.example.com", "letters, digits"),
        ("-a.example.com", "letters, digits"),
        ("a-.example.com", "letters, digits"),
        ("a b.example.com", "letters, digits"),
        ("a.example.com\n", "letters, digits"),
        (" a.example.com", "letters, digits"),
        ("*.example.com", "letters, digits"),
        (f"{'a' * 64}.example", "63 to a label"),
        (".".join(["a" * 63] * 4), "at most 253"),
        ("192.0.2.1", "not an IP address"),
        ("2001:db8::1", "letters, digits"),
        ("[192.0.2.1]", "letters, digits"),
        ("example.123", "not an IP address"),
        ("xn--a.example", "IDNA 2008"),
        ("xn--.example", "letters, digits"),
        ("xn--example-.example", "letters, digits"),
        ("xn--ls8h.example", "IDNA 2008"),  # an emoji: no letter in IDNA 2008
        ("☃.example", "IDNA 2008"),
        ("a\u200db.example", "IDNA 2008"),  # a joiner out of place
        ("\u05d0a.example", "IDNA 2008"),  # letters of both directions
        ("xn--99999999999.example", "IDNA 2008"),
    ],
)
def test_c106_host_name_refused(text: str, allowed: str) -> None:
    with pytest.raises(names.InvalidName, match=allowed):
        names.host_name(text)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("alice@example.com", ("alice", "example.com")),
        ("Alice@Example.COM", ("Alice", "example.com")),
        ("a.b+c@bücher.example", ("a.b+c", "xn--bcher-kva.example")),
        ("!#$%&'*+-/=?^_`{|}~@example.com", ("!#$%&'*+-/=?^_`{|}~", "example.com")),
        (f"{'a' * 64}@example.com", ("a" * 64, "example.com")),
    ],
)
def test_c106_mail_address(text: str, parts: tuple[str, str]) -> None:
    assert names.mail_address(text) == parts


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ("", "such as alice@"),
        ("alice", "such as alice@"),
        ("@example.com", "local part of letters"),
        ("alice@", "domain"),
        ("alice@localhost", "domain .* two labels"),
        ("alice@[192.0.2.1]", "domain"),
        ("a@b@example.com", "local part of letters"),
        (".alice@example.com", "single dots"),
        ("alice.@example.com", "single dots"),
        ("al..ice@example.com", "single dots"),
        ("al ice@example.com", "local part of letters"),
        ("alice\n@example.com", "local part of letters"),
        ('"al ice"@example.com', "local part of letters"),
        ("älice@example.com", "local part of letters"),
        ("al(ice)@example.com", "local part of letters"),
        ("<alice@example.com>", "local part of letters"),
        ("alice@example.com ", "domain"),
        (f"{'a' * 65}@example.com", "at most 64"),
        (f"{'a' * 64}@{'.'.join(['b' * 47] * 4)}", "at most 254"),
    ],
)
def test_c106_mail_address_refused(text: str, allowed: str) -> None:
    with pytest.raises(names.InvalidName, match=allowed):
        names.mail_address(text)


def test_c106_without_idna_only_other_letters_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "_idna", lambda: None)
    names.host_name.cache_clear()
    assert names.host_name("xn--bcher-kva.example") == "xn--bcher-kva.example"
    with pytest.raises(names.InvalidName, match="IDNA 2008"):
        names.host_name("xn--99999999999.example")
    with pytest.raises(names.InvalidName, match="python3-idna"):
        names.host_name("bücher.example")


@given(st.text(max_size=80))
def test_host_name_is_idempotent_or_refuses(text: str) -> None:
    try:
        name = names.host_name(text)
    except names.InvalidName:
        return
    assert name.isascii() and name == name.lower() and not name.endswith(".")
    assert names.host_name(name) == name


@given(st.from_regex(r"xn--[a-z0-9-]{0,20}\.example", fullmatch=True))
def test_a_labels_never_raise_anything_else(text: str) -> None:
    try:
        assert names.host_name(text) == text
    except names.InvalidName as fault:
        assert "example" in str(fault)
