# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) 2026, hikyaku.mail contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

"""The mail directory: what the daemons know about domains, accounts and aliases.

Everything here speaks plain SQL through a DB-API connection. What is particular to an engine is in
its driver, so another engine is another driver. The daemons read the views only, never a table.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from .model import Account, Site

Key = tuple[Any, ...]
Row = tuple[Any, ...]
Rows = dict[Key, Row]


class DirectoryError(Exception):
    """The directory cannot be brought to the wanted state."""


class Driver(Protocol):
    """An engine: how to connect, and how it writes a placeholder."""

    placeholder: str

    def transaction(self) -> Any:
        """Give a connection in a transaction, for `with`: commits at the end, or changes nothing.

        A driver made for a dry run changes nothing in either case.
        """


class Sqlite:
    """A file. In a dry run the work is done on a copy in memory."""

    placeholder = "?"

    def __init__(self, path: str, *, dry_run: bool = False) -> None:
        self._path = path
        self._dry_run = dry_run

    def _connect(self) -> sqlite3.Connection:
        # isolation_level None: the module would otherwise commit before each CREATE.
        if self._dry_run:
            memory = sqlite3.connect(":memory:", isolation_level=None)
            if Path(self._path).exists():
                with closing(sqlite3.connect(self._path, timeout=30)) as source:
                    source.backup(memory)
            return memory
        # Made here because SQLite would make it with the umask's permissions.
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))
        return sqlite3.connect(self._path, timeout=30, isolation_level=None)

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        with closing(self._connect()) as connection:
            # DELETE rather than WAL: readers then need no write access to file or directory
            # (https://www.sqlite.org/wal.html#readonly).
            connection.execute("PRAGMA journal_mode = DELETE")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")
            # Nothing is written before the commit, so readers are shut out for that moment only.
            connection.execute("PRAGMA cache_spill = OFF")
            connection.execute("BEGIN IMMEDIATE")
            yield connection
            connection.execute("COMMIT")


# Step n takes the schema from version n to version n + 1.
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        "CREATE TABLE domain (name TEXT PRIMARY KEY)",
        # One table for all addresses, so that the engine itself keeps an account and an alias from
        # having the same. A catch-all is the address '@domain'.
        """CREATE TABLE address (
            address TEXT PRIMARY KEY,
            domain TEXT NOT NULL REFERENCES domain (name),
            kind TEXT NOT NULL CHECK (kind IN ('account', 'alias', 'catch_all')),
            UNIQUE (address, kind))""",
        "CREATE INDEX address_domain ON address (domain)",
        # inventory_hash is what the inventory said last: it tells a new password in the inventory
        # from one that people changed themselves.
        """CREATE TABLE account (
            address TEXT PRIMARY KEY,
            kind TEXT NOT NULL CHECK (kind = 'account'),
            password_hash TEXT,
            inventory_hash TEXT,
            quota_bytes BIGINT NOT NULL CHECK (quota_bytes >= 0),
            send_only SMALLINT NOT NULL CHECK (send_only IN (0, 1)),
            state TEXT NOT NULL CHECK (state IN ('present', 'disabled')),
            FOREIGN KEY (address, kind) REFERENCES address (address, kind))""",
        """CREATE TABLE alias (
            address TEXT NOT NULL,
            target TEXT NOT NULL,
            kind TEXT NOT NULL CHECK (kind IN ('alias', 'catch_all')),
            PRIMARY KEY (address, target),
            FOREIGN KEY (address, kind) REFERENCES address (address, kind))""",
        "CREATE INDEX alias_target ON alias (target)",
    ),
)

# In the order in which they may be made: a view uses only those before it.
VIEWS: dict[str, str] = {
    "v_domain": "SELECT name FROM domain",
    # Where mail is delivered: a disabled account still receives, a send-only account never.
    "v_mailbox": "SELECT address, quota_bytes FROM account WHERE send_only = 0",
    "v_login": """
        SELECT address, password_hash, quota_bytes FROM account
        WHERE state = 'present' AND password_hash IS NOT NULL""",
    # Targets that refuse mail are left out, so that an alias is refused where its target would be:
    # at RCPT, not by a bounce later. In a domain with a catch-all each mailbox is its own target
    # too, because Postfix looks for '@domain' before it looks for a mailbox (virtual(5)).
    "v_alias": """
        SELECT address, target FROM alias
        WHERE NOT EXISTS (
            SELECT 1 FROM account WHERE account.address = alias.target AND account.send_only = 1)
        UNION ALL
        SELECT account.address, account.address FROM account
        JOIN address ON address.address = account.address
        WHERE account.send_only = 0 AND EXISTS (
            SELECT 1 FROM address AS catch_all WHERE catch_all.address = '@' || address.domain)""",
    # Addresses that exist and get no mail: a catch-all must not take it in their place.
    "v_refused": """
        SELECT address FROM account WHERE send_only = 1
        UNION ALL
        SELECT address.address FROM address
        WHERE address.kind = 'alias' AND NOT EXISTS (
            SELECT 1 FROM v_alias WHERE v_alias.address = address.address)""",
    # Who may send as whom: one's own address, and the aliases that lead straight to it.
    "v_sender": """
        SELECT address, address AS login FROM account WHERE state = 'present'
        UNION ALL
        SELECT alias.address, account.address FROM alias
        JOIN account ON account.address = alias.target
        WHERE alias.kind = 'alias' AND account.state = 'present'""",
}


@dataclass(frozen=True)
class Table:
    """The statements of one table; the key columns come first in `select` and `insert`."""

    name: str
    key_size: int
    select: str
    insert: str
    update: str  # values first, then the key
    delete: str


# A table refers only to those before it.
TABLES = (
    Table(
        "domain",
        1,
        "SELECT name FROM domain",
        "INSERT INTO domain (name) VALUES (?)",
        "",
        "DELETE FROM domain WHERE name = ?",
    ),
    Table(
        "address",
        1,
        "SELECT address, domain, kind FROM address",
        "INSERT INTO address (address, domain, kind) VALUES (?, ?, ?)",
        "UPDATE address SET domain = ?, kind = ? WHERE address = ?",
        "DELETE FROM address WHERE address = ?",
    ),
    Table(
        "account",
        1,
        "SELECT address, kind, password_hash, inventory_hash, quota_bytes, send_only, state"
        " FROM account",
        "INSERT INTO account"
        " (address, kind, password_hash, inventory_hash, quota_bytes, send_only, state)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        "UPDATE account SET kind = ?, password_hash = ?, inventory_hash = ?, quota_bytes = ?,"
        " send_only = ?, state = ? WHERE address = ?",
        "DELETE FROM account WHERE address = ?",
    ),
    Table(
        "alias",
        2,
        "SELECT address, target, kind FROM alias",
        "INSERT INTO alias (address, target, kind) VALUES (?, ?, ?)",
        "UPDATE alias SET kind = ? WHERE address = ? AND target = ?",
        "DELETE FROM alias WHERE address = ? AND target = ?",
    ),
)


class AccountRow(NamedTuple):
    """The columns of account after its key."""

    kind: str
    password_hash: str | None
    inventory_hash: str | None
    quota_bytes: int
    send_only: int
    state: str


@dataclass(frozen=True)
class Change:
    """What becomes of one table."""

    added: Rows
    updated: dict[Key, tuple[Row, Row]]  # old and new
    removed: Rows

    def counts(self) -> dict[str, int]:
        return {name: len(rows) for name, rows in vars(self).items()}

    def any(self) -> bool:
        return bool(self.added or self.updated or self.removed)


@dataclass(frozen=True)
class Report:
    """What a run did. Lines name no secret: a password is only said to have changed."""

    changed: bool
    schema: tuple[int, int]  # version before, version now
    counts: dict[str, dict[str, int]]
    left: list[str]  # accounts that are gone, whose mail is still on disk
    revoked: list[str]  # accounts whose open sessions have lost their right
    before: str
    after: str


def reconcile(driver: Driver, site: Site, *, always_set_passwords: bool = False) -> Report:
    """Bring the directory to the state of `site`, in one transaction."""
    wanted = _wanted_tables(site)
    with driver.transaction() as connection:
        store = _Store(connection, driver.placeholder)
        schema = store.migrate()
        current = {table.name: store.read(table) for table in TABLES}
        _keep_passwords(current["account"], wanted["account"], always_set=always_set_passwords)
        changes = {name: _compare(rows, wanted[name]) for name, rows in current.items()}
        for table in reversed(TABLES):
            store.many(table.delete, list(changes[table.name].removed))
        for table in TABLES:
            change = changes[table.name]
            store.many(table.update, [row + key for key, (_old, row) in change.updated.items()])
            store.many(table.insert, [key + row for key, row in change.added.items()])
    return _report(schema, changes)


def _wanted_tables(site: Site) -> dict[str, Rows]:
    accounts = [account for account in site.accounts if account.state != "absent"]
    aliases = {(alias.address, to): ("alias",) for alias in site.aliases for to in alias.to}
    aliases |= {(name, a.address): ("alias",) for a in accounts for name in a.aliases}
    aliases |= {(f"@{d.name}", d.catch_all): ("catch_all",) for d in site.domains if d.catch_all}
    addresses: Rows = {(a.address,): (a.domain, "account") for a in accounts}
    addresses |= {
        (name,): (name.rpartition("@")[2], *kind) for (name, _to), kind in aliases.items()
    }
    return {
        "domain": {(domain.name,): () for domain in site.domains},
        "address": addresses,
        "account": {(account.address,): _account_row(account) for account in accounts},
        "alias": dict(aliases),
    }


def _account_row(account: Account) -> AccountRow:
    return AccountRow(
        kind="account",
        password_hash=account.password_hash or None,
        inventory_hash=account.password_hash or None,
        quota_bytes=account.quota_bytes,
        send_only=int(account.send_only),
        state=account.state,
    )


def _keep_passwords(current: Rows, wanted: Rows, *, always_set: bool) -> None:
    """Keep the passwords that the inventory has no say in.

    Those that it doesn't give; and, unless they are always set, those whose hash in the inventory
    is what it was at the last run: if the directory has another one, its owner has changed it.
    """
    for key, row in wanted.items():
        if key in current and current[key] != row:
            old, new = AccountRow(*current[key]), AccountRow(*row)
            if new.inventory_hash is None:
                hashes = (old.password_hash, old.inventory_hash)
            elif new.inventory_hash == old.inventory_hash and not always_set:
                hashes = (old.password_hash, new.inventory_hash)
            else:
                continue
            wanted[key] = new._replace(password_hash=hashes[0], inventory_hash=hashes[1])


def _compare(current: Rows, wanted: Rows) -> Change:
    """Compare in bulk: no query per row."""
    return Change(
        added={key: row for key, row in wanted.items() if key not in current},
        updated={
            key: (current[key], row)
            for key, row in wanted.items()
            if key in current and current[key] != row
        },
        removed={key: row for key, row in current.items() if key not in wanted},
    )


def _report(schema: tuple[int, int], changes: Mapping[str, Change]) -> Report:
    nouns = {name: changes[name] for name in ("domain", "account", "alias")}
    accounts = changes["account"]
    left = sorted(address for (address,) in accounts.removed)
    revoked = sorted(
        address
        for (address,), (old, new) in accounts.updated.items()
        if _password_changed(old, new) or (old[-1], new[-1]) == ("present", "disabled")
    )
    before, after = [], []
    for noun, change in nouns.items():
        before += [_line(noun, key, row) for key, row in change.removed.items()]
        after += [_line(noun, key, row) for key, row in change.added.items()]
        for key, (old, new) in change.updated.items():
            before.append(_line(noun, key, old))
            mark = noun == "account" and _password_changed(old, new)
            after.append(_line(noun, key, new, " password=changed" if mark else ""))
    return Report(
        changed=schema[0] != schema[1] or any(change.any() for change in changes.values()),
        schema=schema,
        counts={noun: change.counts() for noun, change in nouns.items()},
        left=left,
        revoked=sorted({*left, *revoked}),
        before="".join(sorted(before)),
        after="".join(sorted(after)),
    )


def _password_changed(old: Row, new: Row) -> bool:
    return AccountRow(*old).password_hash != AccountRow(*new).password_hash


def _line(noun: str, key: Key, row: Row, mark: str = "") -> str:
    text = f"{noun} {' -> '.join(key)}"
    if noun == "account":
        account = AccountRow(*row)
        text += f" state={account.state} quota={account.quota_bytes}"
        text += f" send_only={bool(account.send_only)}"
    return f"{text}{mark}\n"


class _Store:
    """The few statements that are not a table's own, in the words of one connection."""

    def __init__(self, connection: Any, placeholder: str) -> None:
        self._cursor = connection.cursor()
        self._placeholder = placeholder

    def execute(self, statement: str) -> None:
        self._cursor.execute(statement)

    def many(self, statement: str, rows: Sequence[Row]) -> None:
        if rows:
            self._cursor.executemany(statement.replace("?", self._placeholder), rows)

    def migrate(self) -> tuple[int, int]:
        """Bring the schema to this release's version; return the old and the new one."""
        self.execute("CREATE TABLE IF NOT EXISTS schema_version (version INTEGER NOT NULL)")
        self.execute("SELECT version FROM schema_version")
        row = self._cursor.fetchone()
        version, target = (row[0] if row else 0), len(MIGRATIONS)
        if version > target:
            raise DirectoryError(
                f"the directory has schema version {version}, this release knows up to {target}: "
                "use the release that wrote it, or a later one"
            )
        if version < target:
            for name in reversed(VIEWS):
                self.execute(f"DROP VIEW IF EXISTS {name}")
            for step in MIGRATIONS[version:]:
                for statement in step:
                    self.execute(statement)
            for name, select in VIEWS.items():
                self.execute(f"CREATE VIEW {name} AS {select}")
            self.execute("DELETE FROM schema_version")
            self.many("INSERT INTO schema_version VALUES (?)", [(target,)])
        return version, target

    def read(self, table: Table) -> Rows:
        self.execute(table.select)
        size = table.key_size
        return {tuple(row[:size]): tuple(row[size:]) for row in self._cursor.fetchall()}
