# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) 2026, hikyaku.mail contributors
"""Strings of TXT records."""

from __future__ import annotations

import dns.rdata
import dns.rdataclass
import dns.rdatatype
import pytest
from ansible_collections.hikyaku.mail.plugins.module_utils import txt
from hypothesis import given
from hypothesis import strategies as st

OCTETS = st.text(st.characters(max_codepoint=255))


@given(OCTETS)
def test_split_and_join(text: str) -> None:
    strings = txt.split(text)
    assert txt.join(strings) == text
    assert all(len(string) == 255 for string in strings[:-1])
    assert len(strings[-1]) <= 255
    assert strings


@pytest.mark.parametrize(("size", "strings"), [(0, 1), (255, 1), (256, 2), (510, 2), (511, 3)])
def test_split_at_255(size: int, strings: int) -> None:
    assert len(txt.split("x" * size)) == strings


def test_split_refuses_what_is_no_octet() -> None:
    with pytest.raises(ValueError, match="飛"):
        txt.split("飛脚")


@given(st.lists(st.text(st.characters(max_codepoint=255), max_size=255)))
def test_zone_form_and_back(strings: list[str]) -> None:
    assert txt.from_zone(txt.to_zone(strings)) == strings


@given(st.lists(st.text(st.characters(max_codepoint=255), max_size=255), min_size=1, max_size=4))
def test_dnspython_reads_the_zone_form(strings: list[str]) -> None:
    text = txt.to_zone(strings)
    rdata = dns.rdata.from_text(dns.rdataclass.IN, dns.rdatatype.TXT, text)
    assert [string.decode("latin-1") for string in rdata.strings] == strings


@pytest.mark.parametrize(
    ("text", "strings"),
    [
        ('"v=spf1 " "-all"', ["v=spf1 ", "-all"]),
        ("v=spf1 -all", ["v=spf1", "-all"]),
        (r'"a\"b" "\\" "\065\128"', ['a"b', "\\", "A\x80"]),
        (r"a\ b", ["a b"]),
        ('""', [""]),
        ("", []),
    ],
)
def test_reads_zone_form(text: str, strings: list[str]) -> None:
    assert txt.from_zone(text) == strings


@pytest.mark.parametrize("text", ['"open', '"\\', r"\256", r'"\1"', '"' + "x" * 256 + '"'])
def test_refuses_what_is_no_zone_form(text: str) -> None:
    with pytest.raises(ValueError):
        txt.from_zone(text)
