# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) 2026, hikyaku.mail contributors
"""The directory against a model of it in plain Python, and under every kill."""

from __future__ import annotations

import os
import resource
import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.hikyaku.mail.plugins.module_utils import directory
from ansible_collections.hikyaku.mail.plugins.module_utils.model import (
    Account,
    Alias,
    Domain,
    Site,
    parse_site,
)
from hypothesis import given, settings
from hypothesis import strategies as st

VIEWS = {
    "v_domain": "name",
    "v_mailbox": "address, quota_bytes",
    "v_login": "address, password_hash, quota_bytes",
    "v_alias": "address, target",
    "v_refused": "address",
    "v_sender": "address, login",
}


def account(address: str, password: str = "{X}1", **more: Any) -> Account:
    local_part, _, domain = address.rpartition("@")
    return Account(address, local_part, domain, password, **more)


def site(*accounts: Account, aliases: dict[str, list[str]] | None = None) -> Site:
    return Site(
        domains=[Domain("example.test"), Domain("second.test")],
        accounts=list(accounts),
        aliases=[Alias(address, to) for address, to in (aliases or {}).items()],
    )


ALICE, BOB = account("alice@example.test", aliases=["a@example.test"]), account("bob@second.test")


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "directory.sqlite")


def run(path: str, wanted: Site, **options: Any) -> directory.Report:
    dry_run = options.pop("dry_run", False)
    return directory.reconcile(directory.Sqlite(path, dry_run=dry_run), wanted, **options)


def rows(path: str, query: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        return sorted(connection.execute(query).fetchall())


def views(path: str) -> dict[str, list[tuple[Any, ...]]]:
    return {view: rows(path, f"SELECT {columns} FROM {view}") for view, columns in VIEWS.items()}


def set_password(path: str, address: str, password_hash: str) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(
            "UPDATE account SET password_hash = ? WHERE address = ?", (password_hash, address)
        )


# What the views tell, once more in Python


def oracle(wanted: Site) -> dict[str, list[tuple[Any, ...]]]:
    accounts = [each for each in wanted.accounts if each.state != "absent"]
    active = [each for each in accounts if each.state == "present"]
    receiving = [each for each in accounts if not each.send_only]
    send_only = {each.address for each in accounts if each.send_only}
    aliases = {(alias.address, target) for alias in wanted.aliases for target in alias.to}
    aliases |= {(name, each.address) for each in accounts for name in each.aliases}
    catch_all = {each.name: each.catch_all for each in wanted.domains if each.catch_all}
    alias_rows = {(name, target) for name, target in aliases if target not in send_only}
    refused = {name for name, _target in aliases} - {name for name, _target in alias_rows}
    alias_rows |= {(f"@{name}", to) for name, to in catch_all.items() if to not in send_only}
    alias_rows |= {(each.address, each.address) for each in receiving if each.domain in catch_all}
    logins = {each.address for each in active}
    senders = {(address, address) for address in logins}
    senders |= {(name, target) for name, target in aliases if target in logins}
    return {
        "v_domain": sorted((each.name,) for each in wanted.domains),
        "v_mailbox": sorted((each.address, each.quota_bytes) for each in receiving),
        "v_login": sorted(
            (each.address, each.password_hash, each.quota_bytes)
            for each in active
            if each.password_hash
        ),
        "v_alias": sorted(alias_rows),
        "v_refused": sorted((name,) for name in send_only | refused),
        "v_sender": sorted(senders),
    }


DOMAINS = ["example.test", "second.test", "xn--bcher-kva.test"]
ADDRESSES = [f"{local}@{domain}" for domain in DOMAINS for local in ("a", "b", "o'h;--", "d%")]


@st.composite
def sites(draw: st.DrawFn) -> Site:
    domains = draw(st.lists(st.sampled_from(DOMAINS), unique=True, min_size=1))
    addresses = [each for each in ADDRESSES if each.rpartition("@")[2] in domains]
    kinds = {each: draw(st.sampled_from(["account", "own", "alias", ""])) for each in addresses}
    targets = st.sampled_from([*addresses, "x@elsewhere.example"])
    accounts = [
        account(
            each,
            draw(st.sampled_from(["{X}1", "{X}2"])),
            quota_bytes=draw(st.sampled_from([0, 2**40])),
            send_only=draw(st.booleans()),
            state=draw(st.sampled_from(["present", "disabled", "absent"])),
        )
        for each in addresses
        if kinds[each] == "account"
    ]
    for each in addresses:
        if kinds[each] == "own" and accounts:
            draw(st.sampled_from(accounts)).aliases.append(each)
    return Site(
        domains=[Domain(each, catch_all=draw(st.none() | targets)) for each in domains],
        accounts=accounts,
        aliases=[
            Alias(each, draw(st.lists(targets, unique=True, min_size=1, max_size=3)))
            for each in addresses
            if kinds[each] == "alias"
        ],
    )


@given(st.lists(sites(), min_size=1, max_size=3))
@settings(max_examples=60, deadline=None)
def test_views_tell_what_the_inventory_says(
    tmp_path_factory: pytest.TempPathFactory, wanted: list[Site]
) -> None:
    path = str(tmp_path_factory.mktemp("directory") / "directory.sqlite")
    for each in wanted:
        predicted = run(path, each, dry_run=True)
        before = views(path) if Path(path).exists() else None
        done = run(path, each)
        assert predicted == done
        assert views(path) == oracle(each)
        assert done.changed or before == views(path)
        again = run(path, each)
        assert not again.changed
        assert not (again.before or again.after or again.left or again.revoked)
        assert not run(path, each, dry_run=True).changed
    assert rows(path, "PRAGMA integrity_check") == [("ok",)]
    assert rows(path, "PRAGMA foreign_key_check") == []


def test_dry_run_makes_no_file(path: str) -> None:
    assert run(path, site(ALICE), dry_run=True).changed
    assert not Path(path).exists()


def test_dry_run_leaves_the_file_alone(path: str) -> None:
    run(path, site(ALICE))
    before = Path(path).read_bytes()
    report = run(path, site(BOB), dry_run=True)
    assert (report.changed, report.left) == (True, ["alice@example.test"])
    assert Path(path).read_bytes() == before


def test_unchanged_run_writes_nothing(path: str) -> None:
    run(path, site(ALICE))
    os.utime(path, ns=(0, 0))
    run(path, site(ALICE))
    assert Path(path).stat().st_mtime_ns == 0


def test_file_is_private_from_the_start(path: str) -> None:
    old = os.umask(0)
    try:
        run(path, site(ALICE))
    finally:
        os.umask(old)
    assert Path(path).stat().st_mode & 0o777 == 0o600


def test_who_leaves_is_named(path: str) -> None:
    run(path, site(ALICE, BOB))
    absent = account("bob@second.test", state="absent")
    report = run(path, site(absent))
    assert report.left == report.revoked == ["alice@example.test", "bob@second.test"]
    assert rows(path, "SELECT * FROM v_domain") == [("example.test",), ("second.test",)]


def test_an_address_may_change_its_kind(path: str) -> None:
    run(path, site(ALICE, aliases={"bob@second.test": ["alice@example.test"]}))
    wanted = site(BOB, aliases={"alice@example.test": ["bob@second.test"]})
    run(path, wanted)
    assert views(path) == oracle(wanted)


# Passwords


def test_own_password_survives_until_the_inventory_has_another(path: str) -> None:
    run(path, site(BOB))
    set_password(path, BOB.address, "{X}own")
    report = run(path, site(BOB))
    assert not report.changed
    assert rows(path, "SELECT password_hash FROM v_login") == [("{X}own",)]

    report = run(path, site(account(BOB.address, "{X}2")))
    assert report.revoked == [BOB.address]
    assert rows(path, "SELECT password_hash FROM v_login") == [("{X}2",)]
    assert not run(path, site(account(BOB.address, "{X}2"))).changed


def test_always_sets_the_inventory_s_password(path: str) -> None:
    run(path, site(BOB))
    set_password(path, BOB.address, "{X}own")
    assert run(path, site(BOB), always_set_passwords=True).revoked == [BOB.address]
    assert rows(path, "SELECT password_hash FROM v_login") == [("{X}1",)]
    assert not run(path, site(BOB), always_set_passwords=True).changed


def test_same_password_as_the_owner_s_is_no_revocation(path: str) -> None:
    run(path, site(BOB))
    set_password(path, BOB.address, "{X}2")
    report = run(path, site(account(BOB.address, "{X}2")))
    assert (report.changed, report.revoked) == (True, [])


def test_disabled_without_a_hash_keeps_the_password(path: str) -> None:
    run(path, site(BOB))
    report = run(path, site(account(BOB.address, "", state="disabled")))
    assert report.revoked == [BOB.address]
    assert rows(path, "SELECT * FROM v_login") == []
    run(path, site(account(BOB.address, "")))
    assert rows(path, "SELECT password_hash FROM v_login") == [("{X}1",)]


def test_report_names_no_hash(path: str) -> None:
    run(path, site(BOB))
    report = run(path, site(account(BOB.address, "{X}2", quota_bytes=7)))
    assert "{X}" not in repr(report)
    assert report.before == "account bob@second.test state=present quota=0 send_only=False\n"
    assert report.after == (
        "account bob@second.test state=present quota=7 send_only=False password=changed\n"
    )


# The schema by itself


@pytest.mark.parametrize(
    "statement",
    [
        # an alias beside an account of the same address, and the reverse
        "INSERT INTO alias VALUES ('bob@second.test', 'x@example.test', 'alias')",
        "INSERT INTO account VALUES ('a@example.test', 'account', NULL, NULL, 0, 0, 'present')",
        "INSERT INTO address VALUES ('bob@second.test', 'second.test', 'alias')",
        "INSERT INTO address VALUES ('x@third.test', 'third.test', 'account')",
        "DELETE FROM domain WHERE name = 'second.test'",
        "DELETE FROM address WHERE address = 'bob@second.test'",
        "UPDATE account SET quota_bytes = -1",
        "UPDATE account SET state = 'absent'",
    ],
)
def test_schema_refuses_what_contradicts_itself(path: str, statement: str) -> None:
    run(path, site(ALICE, BOB))
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA foreign_keys = ON")
        with pytest.raises(sqlite3.IntegrityError):
            connection.execute(statement)


def test_contradiction_changes_nothing(path: str) -> None:
    run(path, site(ALICE))
    before = views(path)
    with pytest.raises(sqlite3.IntegrityError):
        run(path, site(BOB, aliases={BOB.address: ["x@example.test"]}))
    assert views(path) == before


def test_newer_schema_is_refused(path: str) -> None:
    run(path, site(ALICE))
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE schema_version SET version = 99")
    with pytest.raises(directory.DirectoryError, match="99"):
        run(path, site(BOB))


def test_older_schema_is_migrated(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run(path, site(ALICE))
    step = ("ALTER TABLE account ADD COLUMN note TEXT",)
    monkeypatch.setattr(directory, "MIGRATIONS", (*directory.MIGRATIONS, step))
    monkeypatch.setitem(directory.VIEWS, "v_note", "SELECT address, note FROM account")
    assert run(path, site(ALICE), dry_run=True).schema == (1, 2)
    report = run(path, site(ALICE))
    assert (report.changed, report.schema, report.after) == (True, (1, 2), "")
    assert rows(path, "SELECT * FROM v_note") == [("alice@example.test", None)]
    assert not run(path, site(ALICE)).changed


def test_something_else_than_a_directory_is_not_overwritten(path: str) -> None:
    Path(path).write_text("my poems" * 100)
    with pytest.raises(sqlite3.DatabaseError):
        run(path, site(ALICE))
    assert Path(path).read_text() == "my poems" * 100


@pytest.mark.parametrize(
    "query",
    [
        "SELECT name FROM v_domain WHERE name = ?",
        "SELECT address FROM v_mailbox WHERE address = ?",
        "SELECT password_hash FROM v_login WHERE address = ?",
        "SELECT target FROM v_alias WHERE address = ?",
        "SELECT address FROM v_refused WHERE address = ?",
        "SELECT login FROM v_sender WHERE address = ?",
    ],
)
def test_no_lookup_reads_a_whole_table(path: str, query: str) -> None:
    run(path, site(ALICE, BOB))
    plan = [row[3] for row in rows(path, f"EXPLAIN QUERY PLAN {query}".replace("?", "'x@y'"))]
    assert plan
    assert not [step for step in plan if step.startswith("SCAN")], plan


def test_number_of_statements_does_not_grow(path: str) -> None:
    def count(accounts: int) -> int:
        wanted = site(*(account(f"u{n}@example.test") for n in range(accounts)))
        run(path, wanted)
        statements: list[str] = []
        driver = Observed(path, statements.append)
        assert not directory.reconcile(driver, wanted).changed
        return len(statements)

    assert count(3) == count(300)


class Observed(directory.Sqlite):
    """Calls back before each statement, a row of a bulk statement being one."""

    def __init__(self, path: str, callback: Callable[[str], None]) -> None:
        super().__init__(path)
        self.callback = callback

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        with super().transaction() as connection:
            connection.execute("PRAGMA cache_size = 10")  # pages: much smaller than what is written
            connection.set_trace_callback(self.callback)
            yield connection


class OtherStyle(directory.Sqlite):
    """A driver with another placeholder, as PostgreSQL's have it."""

    placeholder = "%s"

    class Cursor(sqlite3.Cursor):
        def executemany(self, statement: str, parameters: Any) -> Any:
            assert "?" not in statement
            return super().executemany(statement.replace("%s", "?"), parameters)

    @contextmanager
    def transaction(self) -> Iterator[Any]:
        with super().transaction() as connection:
            yield type("Connection", (), {"cursor": lambda _self: self.Cursor(connection)})()


def test_another_driver_is_enough(path: str) -> None:
    directory.reconcile(OtherStyle(path), site(ALICE, BOB))
    directory.reconcile(OtherStyle(path), site(account(BOB.address, "{X}2")))
    assert views(path) == oracle(site(account(BOB.address, "{X}2")))


# Kills

OLD = site(*(account(f"u{n}@example.test") for n in range(50)))
NEW = site(
    *(account(f"u{n}@example.test", "{X}2") for n in range(25, 75)),
    aliases={"u0@example.test": ["u30@example.test", "u31@example.test"]},
)


def in_child(work: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    return os.waitpid(child, 0)[1]


def test_kill_before_any_statement_leaves_the_old_state(path: str) -> None:
    run(path, OLD)
    for number in range(0, 1000, 7):
        left = iter(range(number))

        def kill(_statement: str, left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)

        driver = Observed(path, kill)
        if in_child(lambda driver=driver: directory.reconcile(driver, NEW)) == 0:
            break
        assert views(path) == oracle(OLD)
    assert number > 100
    assert views(path) == oracle(NEW)


def test_kill_in_the_commit_is_undone_by_the_next_run(path: str) -> None:
    """The kernel ends a process that writes beyond its limit: here in the middle of the commit."""
    run(path, OLD)
    large = site(*(account(f"u{n}@example.test", "{X}2") for n in range(1000)))
    size, undone = Path(path).stat().st_size, 0
    for limit in range(size, 100 * size, 16384):

        def work(limit: int = limit) -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            run(path, large)

        status = in_child(work)
        if status == 0:
            break
        assert os.WTERMSIG(status) == signal.SIGXFSZ
        undone += Path(f"{path}-journal").exists()
        run(path, large, dry_run=True)
        assert views(path) == oracle(OLD)
    assert undone > 3
    assert views(path) == oracle(large)


def test_readers_see_the_old_state_until_the_commit(path: str) -> None:
    run(path, OLD)
    statements, seen = iter(range(10000)), []

    def look(_statement: str) -> None:
        # SQLite swallows what is raised here: a reader that is shut out adds nothing to `seen`.
        if next(statements) in (1000, 2000, 3000):
            seen.append(rows(path, "SELECT address FROM v_login"))

    large = site(*(account(f"u{n}@example.test") for n in range(2000)))
    directory.reconcile(Observed(path, look), large)
    assert [each == rows_of(OLD) for each in seen] == [True] * 3
    assert rows(path, "SELECT address FROM v_login") == rows_of(large)


def rows_of(wanted: Site) -> list[tuple[str]]:
    return sorted((each.address,) for each in wanted.accounts)


def test_model_and_directory_agree_on_the_nouns(path: str) -> None:
    wanted, faults = parse_site(
        {
            "mail_domains": [{"name": "Bücher.test", "catch_all": "alice@bücher.test"}],
            "mail_accounts": [
                {
                    "address": "Alice@Bücher.test",
                    "password_hash": HASH,
                    "aliases": ["i@bücher.test"],
                }
            ],
            "mail_aliases": [],
        }
    )
    assert not faults
    run(path, wanted)
    assert views(path) == oracle(wanted)
    assert rows(path, "SELECT name FROM v_domain") == [("xn--bcher-kva.test",)]


HASH = "{SHA512-CRYPT}$6$rounds=100000$abcdefghijklmnop$" + "a" * 86
