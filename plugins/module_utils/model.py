# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) 2026, hikyaku.mail contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The site nouns: parsed, brought to one spelling, and checked against each other.

parse_site() returns the site and every fault at once. A noun that isn't given isn't judged, so
that a caller who knows only domains, accounts and aliases can use it too.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from ansible_collections.hikyaku.mail.plugins.module_utils import names, passwords

T = TypeVar("T")
_Entry = Mapping[str, object]

NOUNS = (
    "mail_hostname",
    "mail_profile",
    "mail_postmaster",
    "mail_domains",
    "mail_accounts",
    "mail_aliases",
    "mail_login_networks",
    "mail_smarthost",
    "mail_antivirus",
)
DOMAIN_KEYS = ("name", "dmarc_policy", "address_format", "catch_all")
ACCOUNT_KEYS = ("address", "password_hash", "quota", "aliases", "send_only", "state")
ALIAS_KEYS = ("address", "to")
SMARTHOST_KEYS = ("host", "port", "username", "password")
PROFILES = ("public", "relay", "private")
DMARC_POLICIES = ("none", "quarantine", "reject")
STATES = ("present", "disabled", "absent")
EVERYWHERE = ("0.0.0.0/0", "::/0")
DELIMITER = "+"  # what follows it in a local part is a detail (RFC 5233)

RECEIVER = "an address of mail_domains that an account or alias receives mail for"
QUOTA = "a size such as 5G or 500M (at least 1M), or 0 or none for no limit"
NETWORK = "a network such as 192.0.2.0/24 or 2001:db8::/32"

_QUOTA = re.compile(r"(\d{1,19})(?:([KMGT])(?:I?B)?|B)?", re.IGNORECASE | re.ASCII)
_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
# Postfix: allow_min_user, allow_percent_hack, swap_bangpath.
_NOT_OWN = re.compile(r"^-|[+%!]")
# Dovecot's default auth_username_chars.
_LOGIN = re.compile(r"[a-z0-9._-]+")


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong: where, what stands there (never a secret), and what may stand there."""

    path: str
    value: str
    allowed: str

    def __str__(self) -> str:
        return f"{self.path}: {self.value}; allowed: {self.allowed}"


@dataclass(slots=True)
class Domain:
    name: str
    dmarc_policy: str = "quarantine"
    address_format: str | None = None  # a regular expression that whole local parts match
    catch_all: str | None = None


@dataclass(slots=True)
class Account:
    address: str
    local_part: str
    domain: str
    password_hash: str  # with its {SCHEME}; empty if none is given
    quota_bytes: int = 0  # 0: no limit
    aliases: list[str] = field(default_factory=list)
    send_only: bool = False
    state: str = "present"


@dataclass(slots=True)
class Alias:
    address: str
    to: list[str]


@dataclass(slots=True)
class Smarthost:
    host: str
    port: int = 587
    username: str | None = None
    password: str | None = field(default=None, repr=False)


@dataclass(slots=True)
class Site:
    hostname: str | None = None
    profile: str = "public"
    postmaster: str | None = None
    domains: list[Domain] = field(default_factory=list)
    accounts: list[Account] = field(default_factory=list)
    aliases: list[Alias] = field(default_factory=list)
    login_networks: list[str] = field(default_factory=lambda: list(EVERYWHERE))
    smarthost: Smarthost | None = None
    antivirus: bool = False

    def nouns(self) -> dict[str, object]:
        """The site as nouns again, in normal form: parse_site() takes it and returns the same."""
        smarthost = self.smarthost
        nouns: dict[str, object] = {
            "mail_hostname": self.hostname,
            "mail_profile": self.profile,
            "mail_postmaster": self.postmaster,
            "mail_domains": [
                {
                    "name": domain.name,
                    "dmarc_policy": domain.dmarc_policy,
                    "address_format": domain.address_format,
                    "catch_all": domain.catch_all,
                }
                for domain in self.domains
            ],
            "mail_accounts": [
                {
                    "address": account.address,
                    "password_hash": account.password_hash or None,
                    "quota": account.quota_bytes,
                    "aliases": list(account.aliases),
                    "send_only": account.send_only,
                    "state": account.state,
                }
                for account in self.accounts
            ],
            "mail_aliases": [
                {"address": alias.address, "to": list(alias.to)} for alias in self.aliases
            ],
            "mail_login_networks": list(self.login_networks),
            "mail_smarthost": {}
            if smarthost is None
            else {
                "host": smarthost.host,
                "port": smarthost.port,
                "username": smarthost.username,
                "password": smarthost.password,
            },
            "mail_antivirus": self.antivirus,
        }
        return {noun: value for noun, value in nouns.items() if value is not None}


def parse_site(site: Mapping[str, object]) -> tuple[Site, list[Fault]]:
    """The site as far as it can be read, and every fault in it."""
    reader = _Reader(site)
    reader.read()
    reader.check_addresses()
    reader.check_targets()
    reader.check_profile()
    return reader.site, reader.faults


class _Reader:
    """Reads the nouns into a Site and keeps the path of each entry for the faults."""

    def __init__(self, nouns: _Entry) -> None:
        self.nouns = nouns
        self.site = Site()
        self.faults: list[Fault] = []
        self.domains: dict[str, tuple[str, Domain]] = {}
        self.accounts: list[tuple[str, Account]] = []
        self.aliases: list[tuple[str, Alias]] = []
        # False once a domain couldn't be read: then "isn't listed" would only be an echo.
        self.domains_known = "mail_domains" in nouns
        self.formats: dict[str, re.Pattern[str]] = {}
        self.taken: dict[str, str] = {}  # from address to the path that has it
        self.receivers: set[str] = set()  # the addresses of mailboxes
        self.alias_targets: dict[str, list[str]] = {}  # from alias to aliases

    # Reading

    def read(self) -> None:
        nouns, site = self.nouns, self.site
        self.unknown_keys("", nouns, NOUNS)
        if "mail_hostname" in nouns:
            site.hostname = self.value("", nouns, "mail_hostname", _system_name, None, needed=True)
        site.profile = self.value("", nouns, "mail_profile", _one_of(PROFILES), "public")
        for path, entry in self.entries("mail_domains", DOMAIN_KEYS):
            self.read_domain(path, entry)
        if any(fault.path == "mail_domains" or fault.path[-1] == "]" for fault in self.faults):
            self.domains_known = False
        site.domains = [domain for _path, domain in self.domains.values()]
        if "mail_postmaster" in nouns:
            site.postmaster = self.value(
                "", nouns, "mail_postmaster", self.target, None, needed=True
            )
        for path, entry in self.entries("mail_accounts", ACCOUNT_KEYS):
            self.read_account(path, entry)
        site.accounts = [account for _path, account in self.accounts]
        for path, entry in self.entries("mail_aliases", ALIAS_KEYS):
            self.read_alias(path, entry)
        site.aliases = [alias for _path, alias in self.aliases]
        if nouns.get("mail_login_networks") is not None:
            found = self.texts("", nouns, "mail_login_networks", _network, NETWORK)
            site.login_networks = list(dict.fromkeys(network for _path, network in found))
        self.read_smarthost("mail_smarthost", nouns.get("mail_smarthost"))
        site.antivirus = self.value("", nouns, "mail_antivirus", _boolean, False)

    def read_domain(self, path: str, entry: _Entry) -> None:
        name = self.value(path, entry, "name", _host_name, None, needed=True)
        domain = Domain(
            name or "",
            self.value(path, entry, "dmarc_policy", _one_of(DMARC_POLICIES), "quarantine"),
            self.value(path, entry, "address_format", _regular_expression, None),
            self.value(path, entry, "catch_all", _own_address, None),
        )
        if name in self.domains:
            self.fault(f"{path}.name", repr(name), f"each domain once ({self.domains[name][0]})")
        elif name is None:
            self.domains_known = False
        else:
            self.domains[name] = (path, domain)
            if domain.address_format is not None:
                self.formats[name] = re.compile(domain.address_format)

    def read_account(self, path: str, entry: _Entry) -> None:
        state = self.value(path, entry, "state", _one_of(STATES), "present")
        account = Account(
            *self.value(path, entry, "address", _login, ("", "", ""), needed=True),
            password_hash=self.value(
                path, entry, "password_hash", _password_hash, "", needed=state == "present"
            ),
            quota_bytes=self.value(path, entry, "quota", _quota, 0),
            aliases=self.addresses(path, entry, "aliases", _own_address),
            send_only=self.value(path, entry, "send_only", _boolean, False),
            state=state,
        )
        if account.address:
            self.accounts.append((path, account))

    def read_alias(self, path: str, entry: _Entry) -> None:
        address = self.value(path, entry, "address", _own_address, None, needed=True)
        faults = len(self.faults)
        to = self.addresses(path, entry, "to", self.target)
        if not to and len(self.faults) == faults:
            self.fault(f"{path}.to", "nothing", "a list of at least one mail address")
        if address is not None:
            self.aliases.append((path, Alias(address, to)))

    def read_smarthost(self, path: str, value: object) -> None:
        if value is None or value == {}:
            return
        entry = self.entry(path, value, SMARTHOST_KEYS)
        if entry is None:
            return
        smarthost = Smarthost(
            self.value(path, entry, "host", _host_name, "", needed=True),
            self.value(path, entry, "port", _port, 587),
            self.value(path, entry, "username", _username, None),
            self.value(path, entry, "password", _password, None),
        )
        for one, other in (("username", "password"), ("password", "username")):
            if entry.get(one) is not None and entry.get(other) is None:
                self.fault(f"{path}.{other}", "nothing", f"a text, since {one} is given")
        self.site.smarthost = smarthost

    # Steps of reading

    def fault(self, path: str, value: str, allowed: str) -> None:
        self.faults.append(Fault(path, value, allowed))

    def value(
        self,
        path: str,
        entry: _Entry,
        key: str,
        parse: Callable[[object], T],
        default: T,
        *,
        needed: bool = False,
    ) -> T:
        """The parsed value; where that fails the default, and a fault."""
        raw = entry.get(key)
        if raw is None and not needed:
            return default
        try:
            return parse(raw)
        except ValueError as allowed:
            self.fault(_join(path, key), _shown(raw, key), str(allowed))
            return default

    def texts(
        self,
        path: str,
        entry: _Entry,
        key: str,
        parse: Callable[[object], T],
        what: str,
    ) -> list[tuple[str, T]]:
        """The parsed items of a list, each with its path."""
        found = []
        for item_path, item in self.items(_join(path, key), entry.get(key), what):
            try:
                found.append((item_path, parse(item)))
            except ValueError as allowed:
                self.fault(item_path, _shown(item, key), str(allowed))
        return found

    def addresses(
        self, path: str, entry: _Entry, key: str, parse: Callable[[object], str]
    ) -> list[str]:
        found = self.texts(path, entry, key, parse, names.ADDRESS)
        return list(dict.fromkeys(address for _path, address in found))

    def items(self, path: str, value: object, what: str) -> Iterator[tuple[str, object]]:
        if isinstance(value, (list, tuple)):
            yield from ((f"{path}[{index}]", item) for index, item in enumerate(value))
        elif value is not None:
            self.fault(path, _kind(value), f"a list, each of it {what}")

    def entries(self, noun: str, keys: tuple[str, ...]) -> Iterator[tuple[str, _Entry]]:
        for path, item in self.items(noun, self.nouns.get(noun), f"a mapping of {_listed(keys)}"):
            entry = self.entry(path, item, keys)
            if entry is not None:
                yield path, entry

    def entry(self, path: str, value: object, keys: tuple[str, ...]) -> _Entry | None:
        if not isinstance(value, Mapping):
            self.fault(path, _kind(value), f"a mapping of {_listed(keys)}")
            return None
        self.unknown_keys(path, value, keys)
        return value

    def unknown_keys(self, path: str, entry: _Entry, keys: tuple[str, ...]) -> None:
        for key in entry:
            if key not in keys:
                near = difflib.get_close_matches(str(key), keys, 1, 0.55)
                hint = f"; did you mean {near[0]}?" if near else ""
                self.fault(_join(path, key), "unknown", f"{_listed(keys)}{hint}")

    # Checks across entries

    def check_addresses(self) -> None:
        """Each address once, in a listed domain, and of that domain's format."""
        first_entry: dict[str, str] = {}
        for path, account in self.accounts:
            first = first_entry.setdefault(account.address, path)
            if first != path:
                self.fault(f"{path}.address", repr(account.address), f"each account once ({first})")
            elif account.state != "absent":  # what is absent leaves its address to others
                self.claim(f"{path}.address", account.address)
                for other in account.aliases:
                    self.claim(f"{path}.aliases", other)
                if not account.send_only:
                    self.receivers.update([account.address, *account.aliases])
        for path, alias in self.aliases:
            self.claim(f"{path}.address", alias.address)
            self.alias_targets.setdefault(alias.address, [])

    def claim(self, path: str, address: str) -> None:
        local_part, _at, domain = address.rpartition("@")
        first = self.taken.setdefault(address, path)
        if first != path:
            self.fault(path, repr(address), f"each address once (it is {first})")
        if domain not in self.domains:
            if self.domains_known:
                self.fault(path, repr(address), "an address in one of mail_domains")
        elif domain in self.formats and not self.formats[domain].fullmatch(local_part):
            pattern = self.formats[domain].pattern
            self.fault(path, repr(address), f"local parts of the address_format {pattern!r}")

    def check_targets(self) -> None:
        """What is sent to an alias, a catch-all or the postmaster arrives somewhere."""
        if not self.nouns.keys() >= {"mail_domains", "mail_accounts", "mail_aliases"}:
            return
        for path, domain in self.domains.values():
            target = domain.catch_all
            if target and target not in self.receivers and target not in self.alias_targets:
                self.fault(f"{path}.catch_all", repr(target), RECEIVER)
        for path, alias in self.aliases:
            for target in alias.to:
                if target.rpartition("@")[2] in self.domains:
                    receiver = self.receiver(target)
                    if receiver is None:
                        self.fault(f"{path}.to", repr(target), RECEIVER)
                    elif receiver in self.alias_targets:
                        self.alias_targets[alias.address].append(receiver)
        paths = {alias.address: path for path, alias in self.aliases}
        for loop in _loops(self.alias_targets):
            self.fault(f"{paths[loop[0]]}.to", _round(loop), "aliases that end somewhere")
        postmaster = self.site.postmaster
        if postmaster is None:
            return
        here = postmaster.rpartition("@")[2] in self.domains
        if (here and self.receiver(postmaster) is None) or (
            not here and self.domains_known and self.site.profile != "relay"
        ):
            self.fault("mail_postmaster", repr(postmaster), RECEIVER)

    def receiver(self, address: str) -> str | None:
        """The account's or alias's address that takes what is sent to an address here."""
        local_part, _at, domain = address.rpartition("@")
        bare = f"{local_part.partition(DELIMITER)[0]}@{domain}"
        if bare in self.receivers or bare in self.alias_targets:
            return bare
        return None if bare in self.taken else self.domains[domain][1].catch_all

    def check_profile(self) -> None:
        site = self.site
        if site.hostname in self.domains:
            # Postfix: a domain is of one class only (ADDRESS_CLASS_README).
            allowed = f"a name that is no mail domain itself ({self.domains[site.hostname][0]})"
            self.fault("mail_hostname", repr(site.hostname), allowed)
        if site.smarthost and site.hostname and site.smarthost.host == site.hostname:
            self.fault("mail_smarthost.host", repr(site.hostname), "another host than this one")
        if site.accounts and self.nouns.get("mail_login_networks") == []:
            self.fault("mail_login_networks", "an empty list", f"at least {NETWORK}")
        if site.profile == "relay":
            for noun in ("mail_accounts", "mail_aliases"):
                if self.nouns.get(noun):
                    allowed = "nothing, since mail_profile is relay, which keeps no mailboxes"
                    self.fault(noun, "entries", allowed)
        elif "mail_profile" in self.nouns and not self.domains and self.domains_known:
            allowed = f"at least one domain, since mail_profile is {site.profile}"
            self.fault("mail_domains", "nothing", allowed)
        if site.profile == "private":
            for network in site.login_networks:
                if network in EVERYWHERE:
                    allowed = "networks of your own, since mail_profile is private"
                    self.fault("mail_login_networks", repr(network), allowed)

    # Values that depend on the domains

    def target(self, value: object) -> str:
        """An address anywhere. Case matters to local parts of others (RFC 5321 section 2.4)."""
        local_part, domain = names.mail_address(_text(value, names.ADDRESS))
        return f"{local_part.lower() if domain in self.domains else local_part}@{domain}"


# Values. Each raises ValueError, whose text says what is allowed.


def _text(value: object, allowed: str) -> str:
    if not isinstance(value, str):
        raise ValueError(allowed)
    return value


def _host_name(value: object) -> str:
    return names.host_name(_text(value, names.FQDN))


def _system_name(value: object) -> str:
    name = _host_name(value)
    if len(name) > 64:  # HOST_NAME_MAX of Linux; a certificate's common name has the same limit
        raise ValueError(f"{names.FQDN}, of at most 64 characters for a host's own name")
    return name


def _own_address(value: object) -> str:
    local_part, domain = names.mail_address(_text(value, names.ADDRESS))
    if _NOT_OWN.search(local_part):
        raise ValueError(
            f"{names.ADDRESS}, its local part without + (what follows it is a detail that every "
            "address has), % and ! (source routes), not beginning with -"
        )
    return f"{local_part.lower()}@{domain}"


def _login(value: object) -> tuple[str, str, str]:
    address = _own_address(value)
    local_part, _at, domain = address.rpartition("@")
    if not _LOGIN.fullmatch(local_part):
        raise ValueError(f"{names.ADDRESS}, its local part of letters, digits, hyphen, _ and .")
    return address, local_part, domain


def _password_hash(value: object) -> str:
    return passwords.password_hash(_text(value, passwords.ALLOWED))


def _quota(value: object) -> int:
    text = "0" if value == "none" else str(value)
    match = _QUOTA.fullmatch(text)
    if match is None or isinstance(value, bool) or not isinstance(value, (int, str)):
        raise ValueError(QUOTA)
    quota = int(match[1]) << _UNITS[(match[2] or "").upper()]
    if 0 < quota < 1 << 20 or quota >= 1 << 63:
        raise ValueError(QUOTA)
    return quota


def _boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def _one_of(choices: tuple[str, ...]) -> Callable[[object], str]:
    def parse(value: object) -> str:
        if value not in choices:
            raise ValueError(_listed(choices, "or"))
        return choices[choices.index(str(value))]

    return parse


def _regular_expression(value: object) -> str:
    text = str(_text(value, "a regular expression"))
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"a regular expression that compiles: {error}") from None
    if not text:
        raise ValueError("a regular expression that matches whole local parts")
    return text


def _network(value: object) -> str:
    text = _text(value, NETWORK)
    try:
        interface = ipaddress.ip_interface(text)
    except ValueError:
        raise ValueError(NETWORK) from None
    if interface.ip != interface.network.network_address:
        raise ValueError(f"{NETWORK}, without host bits: {interface.network}")
    return str(interface.network)


def _port(value: object) -> int:
    text = str(value)
    valid = isinstance(value, (int, str)) and re.fullmatch(r"[1-9][0-9]{0,4}", text)
    if not valid or int(text) > 65535:
        raise ValueError("a port, 1 to 65535")
    return int(text)


def _username(value: object) -> str:
    allowed = "a text without colon and control characters"  # Postfix splits at the first colon
    text = _text(value, allowed)
    if not text.isprintable() or not text or ":" in text:
        raise ValueError(allowed)
    return str(text)


def _password(value: object) -> str:
    allowed = "a text without control characters"
    text = _text(value, allowed)
    if not text.isprintable() or not text:
        raise ValueError(allowed)
    return str(text)


def _loops(edges: Mapping[str, list[str]]) -> Iterator[list[str]]:
    """The loops of a graph: a depth-first walk without recursion, since chains may be long."""
    done: set[str] = set()
    for start in edges:
        if start in done:
            continue
        trail = {start: None}  # a set in order
        walks = [iter(edges[start])]
        while walks:
            for node in walks[-1]:
                if node in trail:
                    nodes = list(trail)
                    yield nodes[nodes.index(node) :]
                elif node not in done:
                    trail[node] = None
                    walks.append(iter(edges[node]))
                    break
            else:
                walks.pop()
                done.add(trail.popitem()[0])


# What faults say


def _round(loop: list[str]) -> str:
    shown = loop if len(loop) <= 5 else [*loop[:4], f"({len(loop) - 4} more)"]
    return " -> ".join([*shown, loop[0]])


def _join(path: str, key: object) -> str:
    name = key if isinstance(key, str) and key.isidentifier() else repr(key)
    return f"{path}.{name}" if path else str(name)


def _listed(choices: Iterable[str], word: str = "and") -> str:
    *others, last = choices
    return f"{', '.join(others)} {word} {last}"


def _kind(value: object) -> str:
    """What sort of thing a value is, where the value itself may hold a secret."""
    if value is None:
        return "nothing"
    kinds = {bool: "true or false", int: "a number", float: "a number", str: "a text"}
    kinds |= {list: "a list", tuple: "a list", Mapping: "a mapping"}
    return next((name for kind, name in kinds.items() if isinstance(value, kind)), "something else")


def _shown(value: object, key: str) -> str:
    if isinstance(value, str) and key == "password_hash":
        return passwords.shown(value)
    if key == "password" and value is not None:
        return f"{_kind(value)} (hidden)"
    if not isinstance(value, (str, int, float)) or key == "password_hash":
        return _kind(value)
    text = repr(str(value)) if isinstance(value, str) else str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
