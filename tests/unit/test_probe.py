# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) 2026, hikyaku.mail contributors
"""The proofs against a mail host in the test process: well-behaved, broken and hostile."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.hikyaku.mail.plugins.module_utils import probe_proofs
from ansible_collections.hikyaku.mail.plugins.module_utils.probe import Account, Ports, Session
from ansible_collections.hikyaku.mail.plugins.module_utils.probe_wire import (
    SHOWN_LINES,
    Target,
    Transcript,
    trust,
)
from probe_host import (
    ALICE,
    ECHO,
    GOOD_RESULTS,
    GOOD_VERDICT,
    NAME,
    PASSWORD,
    Host,
    certificate,
    endless,
    listening,
    rude,
    running,
    server_context,
    silent,
)

Start = Callable[..., Session]


@pytest.fixture(scope="module")
def pems(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("certificates")
    return {name: certificate(directory, name) for name in (NAME, "other.example.test")}


@pytest.fixture
def host(pems: dict[str, Path]) -> Host:
    return Host(
        server_context(pems[NAME]),
        server_context(pems["other.example.test"]),
        verdict=copy.deepcopy(GOOD_VERDICT),
    )


@pytest.fixture
def start(host: Host, pems: dict[str, Path]) -> Iterator[Start]:
    with running(host) as ports:

        def session(**changes: Any) -> Session:
            options = {
                "timeout": 3,
                "account": Account(ALICE, PASSWORD),
                "second_account": "bob@example.test",
                "relay_target": "somebody@peer.test",
                "echo_address": ECHO,
                "ports": ports,
            }
            target = Target(NAME, "127.0.0.1", trust(str(pems[changes.pop("trusted", NAME)])))
            return Session(target, **{**options, **changes})

        yield session


def results(session: Session, *wanted: str) -> dict[str, str]:
    return {proof.id: proof.result for proof in probe_proofs.run(session, wanted or None)}


def failed(session: Session) -> set[str]:
    return {name for name, result in results(session).items() if result == "fail"}


def test_a_good_host_passes_every_proof(start: Start) -> None:
    proofs = probe_proofs.run(start())
    assert [proof for proof in proofs if proof.result != "pass"] == []
    assert len({proof.id for proof in proofs}) == len(proofs) == len(probe_proofs.CHECKS)


def test_what_is_not_given_is_skipped(start: Start) -> None:
    session = start(account=None, second_account=None, relay_target=None, echo_address=None)
    seen = results(session)
    assert {name for name, result in seen.items() if result == "pass"} == {
        "smtp.starttls",
        "smtp.tls13",
        "smtp.certificate",
        "smtp.no_auth",
        "submission.no_auth_before_tls",
        "imap.no_cleartext_login",
        "tls.same_certificate",
    }
    assert set(seen.values()) == {"pass", "skip"}


@pytest.mark.parametrize(
    ("fault", "proof"),
    [
        ("auth on 25", "smtp.no_auth"),
        ("open relay", "smtp.relay_refused"),
        ("open relay", "smtp.unknown_recipient_refused"),
        ("cleartext auth", "submission.no_auth_before_tls"),
        ("forged sender", "submission.forged_sender_refused"),
        ("forged from", "submission.forged_from_refused"),
        ("any password", "submission.wrong_password_refused"),
        ("imap auth", "imap.no_cleartext_login"),
        ("two certificates", "tls.same_certificate"),
    ],
)
def test_each_fault_fails_its_proof(start: Start, host: Host, fault: str, proof: str) -> None:
    host.faults.add(fault)
    names = failed(start(timeout=1))
    assert proof in names
    assert len(names) <= 2


def test_no_tls_on_port_25_is_named(start: Start, host: Host) -> None:
    host.faults.add("no starttls")
    (proof,) = probe_proofs.run(start(), ["smtp.starttls"])
    assert (proof.result, proof.actual) == ("fail", "offers SIZE, HELP")


def test_a_certificate_that_is_not_trusted_gets_no_password(start: Start, host: Host) -> None:
    session = start(trusted="other.example.test")
    names = failed(session)
    assert {"smtp.certificate", "submission465.login", "submission587.login"} <= names
    assert {"imap.login", "pop3.login", "sieve.login"} <= names
    assert not {"smtp.starttls", "smtp.tls13", "tls.same_certificate"} & names
    (proof,) = probe_proofs.run(session, ["submission587.login"])
    assert "certificate refused: self-signed certificate" in proof.actual
    assert not any("AUTH" in line for line in proof.evidence if line.startswith("C:"))


def test_mail_that_never_comes_fails_in_time(start: Start, host: Host) -> None:
    host.faults.add("black hole")
    begin = time.monotonic()
    (proof,) = probe_proofs.run(start(timeout=1), ["local.delivery"])
    assert proof.result == "fail"
    assert "has arrived in time" in proof.actual
    assert time.monotonic() - begin < 3


def test_later_is_tried_again(start: Start, host: Host) -> None:
    host.later = 1
    assert results(start(timeout=10), "local.delivery") == {"local.delivery": "pass"}
    assert host.tries == 2


def test_for_ever_later_is_a_failure_with_the_reply(start: Start, host: Host) -> None:
    host.later = 1000
    (proof,) = probe_proofs.run(start(timeout=1), ["roundtrip.465"])
    assert (proof.result, proof.actual.endswith("451 4.7.1 later")) == ("fail", True)


def test_a_failed_round_trip_is_made_once(start: Start, host: Host) -> None:
    host.later = 1000
    seen = results(start(timeout=1), "roundtrip.465", "roundtrip.spf", "roundtrip.dmarc")
    assert set(seen.values()) == {"fail"}
    assert host.tries == 1


@pytest.mark.parametrize(
    ("verdict", "proof"),
    [
        ({"dkim": GOOD_VERDICT["dkim"][:1]}, "roundtrip.dkim_two_signatures"),
        ({"dkim": []}, "roundtrip.dkim_two_signatures"),
        ({"dkim": "what?"}, "roundtrip.dkim_two_signatures"),
        (
            {"dkim": [{**GOOD_VERDICT["dkim"][0], "result": "fail"}, GOOD_VERDICT["dkim"][1]]},
            "roundtrip.dkim_two_signatures",
        ),
        ({"spf": {"result": "pass", "aligned": False}}, "roundtrip.spf"),
        ({"spf": None}, "roundtrip.spf"),
        ({"dmarc": "fail"}, "roundtrip.dmarc"),
        ({"tls": {"version": ""}}, "roundtrip.tls"),
    ],
)
def test_the_peers_verdict_is_judged(
    start: Start, host: Host, verdict: dict[str, Any], proof: str
) -> None:
    host.verdict |= verdict
    assert {name for name in failed(start()) if name.startswith("roundtrip")} == {proof}


@pytest.mark.parametrize(
    "header",
    [
        GOOD_RESULTS.replace("dkim=pass", "dkim=fail"),
        GOOD_RESULTS.replace("dmarc=pass", ""),
        GOOD_RESULTS.replace(NAME, "mx.peer.test"),
        f"{NAME}; spf=none (spf=pass; dkim=pass; dmarc=pass)",
        f"{NAME}; none",
    ],
)
def test_our_own_verdict_is_judged(start: Start, host: Host, header: str) -> None:
    host.results = header
    seen = results(start(), "roundtrip.authentication_results")
    assert seen == {"roundtrip.authentication_results": "fail"}


def test_the_runs_mail_is_removed_and_nothing_else(start: Start, host: Host) -> None:
    host.arrive(b"Subject: from a friend\r\n\r\nhello")
    session = start()
    probe_proofs.run(session)
    session.begin()
    assert session.clean_up() == 3  # to itself, and two answers
    assert list(host.inbox.values()) == [b"Subject: from a friend\r\n\r\nhello"]


def test_no_password_is_in_the_evidence(start: Start, host: Host) -> None:
    secret = "AGFsaWNlQGV4YW1wbGUudGVzdA"  # how the login begins in base64
    text = str([proof.as_dict() for proof in probe_proofs.run(start())])
    assert PASSWORD not in text
    assert secret not in text
    assert "password]" in text


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda connection: None, "closed the connection"),
        (lambda connection: connection.sendall(b"220 half"), "closed the connection"),
        (lambda connection: connection.sendall(b"\x00\xff\x16\x03garbage\r\n"), "not SMTP"),
        (
            lambda connection: connection.sendall("\uff12\uff12\uff10 wide digits\r\n".encode()),
            "not SMTP",
        ),
        (endless(b"x" * 65536), "a line of more than"),
        (endless(b"220-more\r\n" * 1000), "a reply of more than"),
        (silent, "not in time"),
    ],
)
def test_a_hostile_server_is_a_failed_proof(
    start: Start, answer: Callable[[Any], None], words: str
) -> None:
    begin = time.monotonic()
    with listening(rude(answer)) as port:
        ports = Ports(port, port, port, port, port, port, port)
        proofs = {proof.id: proof for proof in probe_proofs.run(start(ports=ports, timeout=0.3))}
    assert {proof.result for proof in proofs.values()} == {"fail"}
    assert words in proofs["smtp.starttls"].actual
    assert time.monotonic() - begin < 0.5 * len(proofs)


def test_nobody_listens(start: Start) -> None:
    (proof,) = probe_proofs.run(start(ports=Ports(smtp=1)), ["smtp.starttls"])
    assert proof.actual == "port 1: no connection: Connection refused"


def test_words_between_starttls_and_tls_are_not_taken(start: Start) -> None:
    """STARTTLS command injection: what came in clear must not count as said inside TLS."""

    def answer(connection: Any) -> None:
        connection.sendall(b"220 here\r\n")
        connection.recv(1000)
        connection.sendall(b"250-x\r\n250 STARTTLS\r\n")
        connection.recv(1000)
        connection.sendall(b"220 go\r\n250-x\r\n250 AUTH PLAIN\r\n")
        time.sleep(1)

    with listening(rude(answer)) as port:
        (proof,) = probe_proofs.run(start(ports=Ports(smtp=port)), ["smtp.tls13"])
    assert "between STARTTLS and TLS" in proof.actual


@pytest.mark.parametrize(
    "lines",
    [
        b"* SEARCH 1\r\na3 OK\r\n* 1 FETCH {99999999999999}\r\n",
        b"* 1 FETCH {999999999}\r\n",
        b"* NO\r\n" * 3000,
    ],
)
def test_a_hostile_imap_server_is_a_failed_proof(
    start: Start, host: Host, lines: bytes, pems: dict[str, Path]
) -> None:
    def answer(connection: Any) -> None:
        inside = host.context.wrap_socket(connection, server_side=True)
        inside.sendall(b"* OK\r\n" + lines)
        time.sleep(1)

    with listening(rude(answer)) as port:
        (proof,) = probe_proofs.run(start(ports=Ports(imaps=port), timeout=0.5), ["imap.login"])
    assert proof.result == "fail"


def test_a_parser_that_breaks_is_a_failed_proof(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(_: Session) -> str:
        raise IndexError("header")

    one = probe_proofs.Check("x.y", "title", "expected", (), breaks)
    assert probe_proofs.prove(start(), one).actual == "IndexError: header"


def test_the_evidence_has_both_ends_of_a_long_dialogue() -> None:
    transcript = Transcript(("secret",))
    for number in range(100):
        transcript.add("S", f"{number} secret")
    lines = transcript.lines
    assert (lines[0], lines[-1]) == ("S: 0 ********", "S: 99 ********")
    assert lines[SHOWN_LINES] == f"-: {100 - 2 * SHOWN_LINES} lines left out"
    assert len(lines) == 2 * SHOWN_LINES + 1
