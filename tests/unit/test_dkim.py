# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) 2026, hikyaku.mail contributors
"""Keys and records of DKIM, against the RFCs' examples and against other implementations."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from contextlib import suppress

import dkim as dkimpy
import pytest
from ansible_collections.hikyaku.mail.plugins.module_utils import dkim
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PrivateFormat, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

# RFC 8463 appendix A.1 and A.2
RFC8463_SEED = "nWGxne/9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A="
RFC8463_RECORD = "v=DKIM1; k=ed25519; p=11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="
# RFC 6376 appendix C
RFC6376_RECORD = "".join(
    (
        "v=DKIM1; p=MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQ",
        "KBgQDwIRP/UC3SBsEmGqZ9ZJW3/DkMoGeLnQg1fWn7/zYt",
        "IxN2SnFCjxOCKG9v3b4jYfcTNh5ijSsq631uBItLa7od+v",
        "/RtdC2UzJ1lWT947qR+Rcac2gbto/NMqJ0fzfVjH4OuKhi",
        "tdY9tf6mcwGjaNBcWToIMmPSPDdQPNUYckcQ2QIDAQAB",
    )
)

RSA = {bits: rsa.generate_private_key(65537, bits) for bits in (1024, 2048, 3072)}
FORMATS = {"pkcs8": PrivateFormat.PKCS8, "pkcs1": PrivateFormat.TraditionalOpenSSL}


def pem(key: rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey, form: str = "pkcs8") -> bytes:
    return key.private_bytes(Encoding.PEM, FORMATS[form], serialization.NoEncryption())


def spki(key: rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def ids(findings: list[dkim.Finding]) -> list[tuple[str, str]]:
    return [(finding.id, finding.severity[0]) for finding in findings]


# Keys


@pytest.mark.parametrize("form", ["pkcs8", "pkcs1"])
@pytest.mark.parametrize("bits", sorted(RSA))
def test_public_half_of_rsa_is_read_without_loading_it(bits: int, form: str) -> None:
    public = dkim.read_private_key(pem(RSA[bits], form))
    assert public == dkim.PublicKey("rsa", bits, spki(RSA[bits]), form)
    assert public.fingerprint == hashlib.sha256(spki(RSA[bits])).hexdigest()


def test_rfc8463_key() -> None:
    public = dkim.read_private_key(RFC8463_SEED.encode())
    assert (public.type, public.bits, public.format) == ("ed25519", 256, "ed25519_seed")
    record = dkim.Record(public.data, k=public.type)
    assert dkim.record_text(record) == RFC8463_RECORD
    assert dkim.parse_record(RFC8463_RECORD) == record
    assert dkim.check_text(RFC8463_RECORD) == []


@pytest.mark.parametrize(
    ("content", "form"),
    [
        (lambda key, raw: pem(key), "pkcs8"),
        (lambda key, raw: base64.b64encode(raw), "ed25519_seed"),
        (lambda key, raw: base64.b64encode(raw) + b"\n", "ed25519_seed"),
        (
            lambda key, raw: base64.b64encode(
                raw + key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
            ),
            "ed25519_pair",
        ),
    ],
)
def test_forms_of_an_ed25519_key(
    content: Callable[[ed25519.Ed25519PrivateKey, bytes], bytes], form: str
) -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    public = dkim.read_private_key(content(key, key.private_bytes_raw()))
    assert public.data == key.public_key().public_bytes_raw()
    assert public.format == form
    assert public.fingerprint == hashlib.sha256(spki(key)).hexdigest()


@pytest.mark.parametrize(("type_", "form"), [("rsa", "pkcs8"), ("rsa", "pkcs1")])
@pytest.mark.parametrize("other", ["pkcs8", "pkcs1"])
def test_conversion_keeps_an_rsa_key(type_: str, form: str, other: str) -> None:
    content = pem(RSA[2048], form)
    assert dkim.convert_private_key(content, other) == pem(RSA[2048], other)


@pytest.mark.parametrize("form", ["pkcs8", "ed25519_seed"])
@pytest.mark.parametrize("other", ["pkcs8", "ed25519_seed"])
def test_conversion_keeps_an_ed25519_key(form: str, other: str) -> None:
    content = dkim.generate_private_key("ed25519", 256, form)
    converted = dkim.convert_private_key(content, other)
    assert dkim.read_private_key(converted).data == dkim.read_private_key(content).data
    assert dkim.convert_private_key(converted, form) == content


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"my poems",
        base64.b64encode(b"x" * 31),
        pem(RSA[1024]).replace(b"PRIVATE", b"PUBLIC"),
        pem(RSA[1024])[:200],
        pem(RSA[1024], "pkcs1").replace(b"A", b"B", 1),
        b"-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n",
        ec.generate_private_key(ec.SECP256R1()).private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
        RSA[1024].private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x")
        ),
    ],
)
def test_what_is_no_usable_key_is_told(content: bytes) -> None:
    with pytest.raises(dkim.DkimError):
        dkim.read_private_key(content)


@given(st.binary(max_size=200), st.booleans())
def test_any_content_is_a_key_or_an_error(data: bytes, wrap: bool) -> None:
    content = data
    if wrap:
        content = b"-----BEGIN PRIVATE KEY-----\n%s\n-----END PRIVATE KEY-----" % (
            base64.b64encode(data)
        )
    with suppress(dkim.DkimError):
        dkim.read_private_key(content)


@given(st.integers(0, 1200), st.integers(0, 255))
def test_a_damaged_key_is_a_key_or_an_error(at: int, octet: int) -> None:
    der = bytearray(base64.b64decode(b"".join(pem(RSA[2048]).splitlines()[1:-1])))
    der[at % len(der)] = octet
    body = base64.b64encode(bytes(der))
    with suppress(dkim.DkimError):
        dkim.read_private_key(
            b"-----BEGIN PRIVATE KEY-----\n%s\n-----END PRIVATE KEY-----\n" % body
        )


# Records

TAG_TEXT = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters=";"))
ITEMS = st.none() | st.lists(
    st.from_regex(r"[a-z][a-z0-9]{0,8}", fullmatch=True), min_size=1, max_size=3
).map(tuple)


@given(
    st.builds(
        dkim.Record,
        p=st.binary(max_size=400),
        k=st.none() | st.sampled_from(["rsa", "ed25519"]),
        h=ITEMS,
        s=ITEMS,
        t=ITEMS,
        n=st.none() | st.text(st.characters(exclude_categories=["Cs"])),
        v=st.booleans(),
        unknown=st.dictionaries(
            st.from_regex(r"x[a-z0-9_]{1,5}", fullmatch=True), TAG_TEXT, max_size=3
        ).map(lambda tags: tuple(tags.items())),
    )
)
def test_record_to_text_and_back(record: dkim.Record) -> None:
    text = dkim.record_text(record)
    assert dkim.parse_record(text) == record
    assert dkim.record_text(dkim.parse_record(text)) == text
    assert text.isascii() and text.isprintable()


@given(st.text())
def test_any_text_is_a_record_or_an_error(text: str) -> None:
    assert isinstance(dkim.check_text(text), list)


def test_rfc6376_record() -> None:
    record = dkim.parse_record(RFC6376_RECORD)
    assert (record.k, record.h, record.s, record.t, record.n) == (None,) * 5
    assert dkim.record_text(record) == RFC6376_RECORD
    assert ids(dkim.check_record(record)) == [("DKIM-04", "w")]


def p_of(key: rsa.RSAPrivateKey) -> str:
    return base64.b64encode(spki(key)).decode()


P = p_of(RSA[2048])
PKCS1 = base64.b64encode(
    RSA[2048].public_key().public_bytes(Encoding.DER, PublicFormat.PKCS1)
).decode()
ED = RFC8463_RECORD.rpartition("p=")[2]
ED_SPKI = base64.b64encode(
    bytes.fromhex("302a300506032b6570032100") + base64.b64decode(ED)
).decode()
# RSA-768, which no library makes any more: only its size matters here.
SMALL = base64.b64encode(bytes.fromhex("30680261") + b"\0" + b"\xff" * 96 + b"\2\3\1\0\1").decode()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(f"v=DKIM1; k=rsa; p={P}", [], id="plain"),
        pytest.param(f"p={P}", [], id="all defaults"),
        pytest.param(f"v=DKIM1;p={P};", [], id="semicolon at the end"),
        pytest.param(f" v = DKIM1 ;\tk = rsa ; p = {P[:9]} \t {P[9:]} ; ", [], id="blanks"),
        pytest.param(f"v=DKIM1; h=sha256; s=email; t=s; p={P}", [], id="all tags"),
        pytest.param(f"v=DKIM1; n=moved=20in 2026=3B; p={P}", [], id="note"),
        pytest.param(f"v=DKIM1; g=*; p={P}", [("DKIM-02", "i")], id="tag of RFC 4871"),
        pytest.param(f"V=DKIM1; p={P}", [("DKIM-02", "i")], id="V is another tag"),
        pytest.param(f"k=rsa; v=DKIM1; p={P}", [("DKIM-02", "e")], id="v not first"),
        pytest.param(f"v=dkim1; p={P}", [("DKIM-02", "e")], id="v in other letters"),
        pytest.param(f"v=DKIM1; p={P}; p={P}", [("DKIM-02", "e")], id="p twice"),
        pytest.param(f"v=DKIM1;; p={P}", [("DKIM-02", "e")], id="empty tag"),
        pytest.param("v=DKIM1; k=rsa", [("DKIM-02", "e")], id="no p"),
        pytest.param("v=DKIM1; p=%%%", [("DKIM-02", "e")], id="p not base64"),
        pytest.param("v=DKIM1; p=ü", [("DKIM-02", "e")], id="p not ASCII"),
        pytest.param("", [("DKIM-02", "e")], id="nothing"),
        pytest.param(f"v=DKIM1; p={SMALL}", [("DKIM-04", "e"), ("DKIM-06", "i")], id="RSA-768"),
        pytest.param(f"v=DKIM1; p={p_of(RSA[1024])}", [("DKIM-04", "w")], id="RSA-1024"),
        pytest.param(f"v=DKIM1; p={p_of(RSA[3072])}", [], id="RSA-3072"),
        pytest.param(f"v=DKIM1; p={PKCS1}", [("DKIM-06", "i")], id="RSAPublicKey"),
        pytest.param(f"v=DKIM1; k=ed25519; p={ED_SPKI}", [("DKIM-05", "e")], id="Ed25519 SPKI"),
        pytest.param(f"v=DKIM1; p={ED}", [("DKIM-06", "e")], id="Ed25519 without k"),
        pytest.param(f"v=DKIM1; p={ED_SPKI}", [("DKIM-06", "e")], id="Ed25519 SPKI without k"),
        pytest.param(f"v=DKIM1; k=ed25519; p={P}", [("DKIM-05", "e")], id="RSA as Ed25519"),
        pytest.param(f"v=DKIM1; k=dsa; p={P}", [("DKIM-06", "e")], id="unknown k"),
        pytest.param(f"v=DKIM1; h=sha1; p={P}", [("DKIM-07", "e")], id="sha1"),
        pytest.param(f"v=DKIM1; h=sha1 : sha256; p={P}", [("DKIM-07", "w")], id="sha1:sha256"),
        pytest.param(f"v=DKIM1; h=sha512; p={P}", [("DKIM-07", "e")], id="sha512"),
        pytest.param(f"v=DKIM1; s=*; p={P}", [], id="s=*"),
        pytest.param(f"v=DKIM1; s=tlsrpt; p={P}", [("DKIM-08", "e")], id="s=tlsrpt"),
        pytest.param(f"v=DKIM1; s=foo:email; p={P}", [], id="s=foo:email"),
        pytest.param(f"v=DKIM1; t=y; p={P}", [("DKIM-09", "w")], id="t=y"),
        pytest.param(f"v=DKIM1; t=y:s; p={P}", [("DKIM-09", "w")], id="t=y:s"),
        pytest.param("v=DKIM1; p=", [("DKIM-11", "e")], id="revoked"),
    ],
)
def test_verdicts(text: str, expected: list[tuple[str, str]]) -> None:
    assert ids(dkim.check_text(text)) == expected


@pytest.mark.parametrize("text", ["v=DKIM1; p=", f"v=DKIM1; t=y; p={P}"])
def test_a_key_out_of_use_may_be_revoked_or_in_test(text: str) -> None:
    assert dkim.check_text(text, active=False) == []


def test_huge_rsa_key_is_warned_of() -> None:
    modulus = b"\0" + b"\xff" * 1024
    body = bytes.fromhex("02820401") + modulus + b"\2\3\1\0\1"
    data = bytes.fromhex("3082") + len(body).to_bytes(2, "big") + body
    assert ("DKIM-04", "w") in ids(dkim.check_record(dkim.Record(data)))


# Other implementations

MESSAGE = b"From: alice@example.test\r\nTo: bob@peer.test\r\nSubject: hi\r\n\r\nhello\r\n"


@pytest.mark.parametrize(
    ("type_", "form"), [("rsa", "pkcs8"), ("rsa", "pkcs1"), ("ed25519", "ed25519_seed")]
)
def test_dkimpy_signs_and_verifies_with_our_keys(type_: dkim.KeyType, form: dkim.Format) -> None:
    key = dkim.generate_private_key(type_, 2048, form)
    text = dkim.record_text(dkim.Record(dkim.read_private_key(key).data, k=type_))
    assert dkim.check_text(text) == []
    algorithm = f"{type_}-sha256".encode()
    signature = dkimpy.sign(MESSAGE, b"s", b"example.test", key, signature_algorithm=algorithm)

    def lookup(name: bytes, timeout: int = 5) -> bytes:
        assert name.decode() == dkim.record_name("example.test", "s") + "."
        return text.encode()

    assert dkimpy.verify(signature + MESSAGE, dnsfunc=lookup)
    assert not dkimpy.verify(signature + MESSAGE.replace(b"hello", b"hallo"), dnsfunc=lookup)


def test_generated_keys_sign() -> None:
    key = serialization.load_pem_private_key(
        dkim.generate_private_key("rsa", 3072, "pkcs8"), password=None
    )
    assert isinstance(key, rsa.RSAPrivateKey)
    assert key.key_size == 3072
    key.sign(b"x", padding.PKCS1v15(), hashes.SHA256())


def test_ed25519_signature_of_a_generated_key() -> None:
    content = dkim.generate_private_key("ed25519", 256, "ed25519_seed")
    key = ed25519.Ed25519PrivateKey.from_private_bytes(base64.b64decode(content))
    public = dkim.read_private_key(content)
    ed25519.Ed25519PublicKey.from_public_bytes(public.data).verify(key.sign(b"x"), b"x")
