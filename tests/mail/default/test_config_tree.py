# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) 2026, hikyaku.mail contributors
"""config_tree on a real host over SSH: a parser that refuses, kills, 200 files, no traces."""

from __future__ import annotations

import json
import os
import subprocess
import time
import typing as t
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from testinfra.host import Host

ROOT = Path(__file__).resolve().parents[3]
DEST = "/etc/hikyaku-test"
STATE = "/var/lib/hikyaku/config/test"

# A parser that approves, and leaves somebody behind who kills the module as soon as the file
# named by its last argument appears or changes.
KILLER = """
import os, sys, time
def look(path):
    try:
        status = os.lstat(path)
        return status.st_ino, status.st_mtime_ns
    except OSError:
        return None
module, seen = os.getppid(), look(sys.argv[2])
if os.fork() == 0:
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(null, descriptor)
    end = time.monotonic() + 20
    while look(sys.argv[2]) == seen and time.monotonic() < end:
        pass
    os.kill(module, 9)
"""


@dataclass(frozen=True)
class Run:
    returncode: int
    output: str
    seconds: float
    result: dict[str, t.Any]


class Playbook:
    """A playbook of one config_tree task, with its templates beside it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def run(
        self,
        files: dict[str, str],
        /,
        *arguments: str,
        dest: str = DEST,
        validate: list[dict[str, t.Any]] | None = None,
        variables: dict[str, str] | None = None,
        **tree: t.Any,
    ) -> Run:
        source = self._directory / "templates" / "tree"
        subprocess.run(["rm", "-rf", str(source)], check=True)
        for path, content in files.items():
            (source / path).parent.mkdir(parents=True, exist_ok=True)
            (source / path).write_text(content)
        task = {
            "name": "test",
            "trees": [{"src": "tree", "dest": dest, **tree}] if files else [],
            "validate": validate or [],
        }
        kept = self._directory / "result.json"
        kept.unlink(missing_ok=True)
        keep = {
            "delegate_to": "localhost",
            "check_mode": False,
            "diff": False,
            "vars": {"ansible_connection": "local"},
            "ansible.builtin.copy": {
                "content": "{{ outcome | to_json }}",
                "dest": str(kept),
                "mode": "0600",
            },
        }
        deploy = {"hikyaku.mail.config_tree": task, "register": "outcome"}
        play = {
            "hosts": "mx1",
            "gather_facts": False,
            "vars": variables or {},
            "tasks": [{"block": [deploy], "always": [keep]}],
        }
        (self._directory / "play.yml").write_text(yaml.safe_dump([play]))
        inventory = os.environ.get("HIKYAKU_INVENTORY", str(ROOT / "inventories" / "demo"))
        start = time.monotonic()
        done = subprocess.run(
            ["ansible-playbook", "-i", inventory, str(self._directory / "play.yml"), *arguments],
            cwd=ROOT,
            env={**os.environ, "ANSIBLE_NOCOLOR": "1"},
            text=True,
            capture_output=True,
            check=False,
        )
        seconds = time.monotonic() - start
        result = json.loads(kept.read_text()) if kept.exists() else {}
        return Run(done.returncode, done.stdout + done.stderr, seconds, result)


@pytest.fixture
def playbook(host: Host, tmp_path: Path) -> Iterator[Playbook]:
    playbook = Playbook(tmp_path)
    yield playbook
    assert playbook.run({}).returncode == 0, "taking everything back"
    assert not host.file(DEST).exists
    host.check_output(f"rm -rf {STATE}")


def contents(host: Host) -> dict[str, str]:
    """Every file below DEST, temporary ones included."""
    script = (
        "import json, pathlib, sys; base = pathlib.Path(sys.argv[1]);"
        "print(json.dumps({str(p.relative_to(base)): p.read_text()"
        " for p in base.rglob('*') if p.is_file()}))"
    )
    found: dict[str, str] = json.loads(host.check_output("python3 -c %s %s", script, DEST))
    return found


def test_c109_postfix_refuses_a_configuration_and_keeps_the_one_it_has(
    host: Host, playbook: Playbook
) -> None:
    def state() -> str:
        return host.check_output(
            "sha256sum /etc/postfix/*.cf; ls -li /etc/postfix; systemctl show postfix.service"
            " -p ActiveState -p InvocationID -p ExecMainStartTimestampMonotonic"
        )

    before = state()
    parser = {"argv": ["postconf", "-c", "{stage}/etc/postfix"], "stderr": "fail"}
    files = {"main.cf.j2": "compatibility_level = {{ level }}\nmyhostname mx.test\n"}
    for mode in ("--diff", "--check"):
        run = playbook.run(
            files, mode, dest="/etc/postfix", validate=[parser], variables={"level": "3.6"}
        )
        assert run.returncode != 0
        assert "fatal: /etc/postfix/main.cf, line 2: missing '='" in run.result["msg"], run.output
        assert run.result["rc"] == 1
        assert run.result["argv"] == parser["argv"]
        assert state() == before
    undefined = playbook.run(files, dest="/etc/postfix", validate=[parser])
    assert "main.cf.j2: 'level' is undefined" in undefined.result["msg"]
    assert state() == before


def test_c105_a_daemon_that_was_not_reloaded_is_told_of_again(
    host: Host, playbook: Playbook
) -> None:
    """As after a run that was killed between its tasks and its handlers."""

    def run(*arguments: str) -> Run:
        return playbook.run({"a.conf": "a\n"}, *arguments, unit="postfix.service")

    assert run().result["changed"]
    for arguments in (["--check"], []):
        assert run(*arguments).result["files"] == [f"{DEST}/a.conf"]
    host.check_output("systemctl reload postfix.service")
    assert not run().result["changed"]


def test_c109_a_removed_or_changed_file_comes_back(host: Host, playbook: Playbook) -> None:
    files = {"a.j2": "a\n", "sub/b": "b\n"}
    assert playbook.run(files).result["changed"]
    assert not playbook.run(files).result["changed"]
    host.check_output(f"rm {DEST}/a && echo harm >>{DEST}/sub/b")
    assert playbook.run(files, "--check").result["files"] == [f"{DEST}/a", f"{DEST}/sub/b"]
    assert playbook.run(files).result["files"] == [f"{DEST}/a", f"{DEST}/sub/b"]
    assert contents(host) == {"a": "a\n", "sub/b": "b\n"}


def test_check_mode_where_the_daemon_is_not_installed_leaves_no_trace(
    host: Host, playbook: Playbook
) -> None:
    parser = {"argv": ["no-such-daemon", "--check", "{stage}" + DEST]}
    options: dict[str, t.Any] = {"owner": "no-such-user", "validate": [parser]}
    run = playbook.run({"a": "a\n"}, "--check", "--diff", **options)
    assert run.returncode == 0, run.output
    assert run.result["files"] == [f"{DEST}/a"]
    assert run.result["skipped_commands"] == [parser["argv"]]
    assert not host.file(DEST).exists
    assert not host.file(STATE).exists
    run = playbook.run({"a": "a\n"}, **options)
    assert "owner 'no-such-user' of" in run.result["msg"]
    assert not host.file(DEST).exists


def test_two_hundred_files_in_one_task(host: Host, playbook: Playbook) -> None:
    names = [f"d{i % 10}/f{i}.j2" for i in range(200)]
    files = dict.fromkeys(names, "{% for i in range(50) %}\nline {{ i }}\n{% endfor %}\n")
    first, second = playbook.run(files), playbook.run(files)
    assert len(first.result["files"]) == 200
    assert len(contents(host)) == 200
    assert not second.result["changed"]
    print(f"200 files: {first.seconds:.1f} s, again: {second.seconds:.1f} s, playbook and all")
    assert second.seconds < 15


def test_no_secret_is_shown_or_logged(host: Host, playbook: Playbook) -> None:
    files = {"key.j2": "password = {{ secret }}\n", "open": "not masked: changed\n"}
    run = playbook.run(
        files,
        "--diff",
        "-vvvv",
        variables={"secret": "chrysanthemum"},
        files=[{"path": "key", "mode": "0600"}],
    )
    assert run.returncode == 0, run.output
    assert host.file(f"{DEST}/key").content_string == "password = chrysanthemum\n"
    assert "chrysanthemum" not in run.output
    assert "secret, HMAC-SHA-256" in run.output
    assert "+not masked: changed" in run.output
    assert host.run("journalctl --since -10min | grep -c 'password = chrys'").stdout.strip() == "0"


def test_c105_a_module_killed_while_200_files_land(host: Host, playbook: Playbook) -> None:
    def tree(word: str) -> dict[str, str]:
        return {f"f{i:03}": f"{word} {i}\n" * 500 for i in range(200)}

    moments = (
        STATE,  # before the moment of truth
        f"{STATE}/pending",  # just after it
        f"{DEST}/.f100.hikyaku-new",
        f"{DEST}/f000",
        f"{DEST}/f100",
        f"{STATE}/last_good",
    )
    assert playbook.run(tree("before")).returncode == 0
    for number, moment in enumerate(moments):
        before, after = contents(host), tree(f"generation {number}")
        killer = {"argv": ["python3", "-c", KILLER, "{stage}", moment]}
        killed = playbook.run(after, validate=[killer])
        assert killed.returncode != 0, "the module was killed before it could answer"
        found = contents(host)
        new = sum(content == after.get(name) for name, content in found.items())
        old = sum(content == before.get(name) for name, content in found.items())
        print(f"killed at {moment}: {old} old, {new} new, {len(found) - old - new} temporary")
        assert old + new == 200
        assert all(name.endswith(".hikyaku-new") for name in set(found) - set(after))

        again = playbook.run(after)
        assert again.returncode == 0, again.output
        assert len(again.result["files"]) == 200, "all of them, for no daemon was told of any"
        assert contents(host) == after


def test_c105_a_module_killed_while_the_parser_runs(host: Host, playbook: Playbook) -> None:
    assert playbook.run({"a": "old\n"}).returncode == 0
    suicide = {"argv": ["sh", "-c", "kill -9 $PPID; sleep 1", "sh", "{stage}"]}
    assert playbook.run({"a": "new\n"}, validate=[suicide]).returncode != 0
    assert contents(host) == {"a": "old\n"}
    assert playbook.run({"a": "new\n"}).result["changed"]
    assert contents(host) == {"a": "new\n"}
    assert not host.file("/run/hikyaku-config/test").exists
