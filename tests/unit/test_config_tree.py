# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) 2026, hikyaku.mail contributors
"""What config_tree does to a host, below a directory that plays the host's root."""

from __future__ import annotations

import getpass
import grp
import itertools
import json
import multiprocessing
import os
import signal
import stat
import subprocess
import tempfile
import time
import typing as t
from pathlib import Path

import pytest
from ansible_collections.hikyaku.mail.plugins.module_utils import config_tree as core
from ansible_collections.hikyaku.mail.plugins.module_utils import config_tree_landing as landing
from ansible_collections.hikyaku.mail.plugins.module_utils import config_tree_task as task
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

OWNER = getpass.getuser()
GROUP = grp.getgrgid(os.getgid()).gr_name
NAME = "mta"
STATE = "var/lib/hikyaku/config/mta"

Contents = dict[str, bytes]


def run_command(argv: list[str], cwd: str) -> tuple[int, str, str]:
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def validator(script: str, **options: str) -> task.Command:
    """A parser in shell; $1 is the stage."""
    return {"argv": ["sh", "-c", script, "sh", "{stage}"], "stderr": "ignore", **options}


def builder(script: str, *creates: str) -> task.Command:
    return {"argv": ["sh", "-c", script, "sh", "{stage}"], "creates": list(creates)}


class Host:
    """A host's root, and a role's templates beside it."""

    def __init__(self, base: Path) -> None:
        self.base, self.root = base, base / "root"
        self.root.mkdir()
        self.commands: list[list[str]] = []
        self.unit = ""  # what systemctl shows of it
        self._serial = itertools.count()

    def tree(
        self, files: Contents, /, dest: str = "/etc/app", **options: t.Any
    ) -> dict[str, t.Any]:
        source = self.base / f"tree{next(self._serial)}"
        source.mkdir()
        for path, content in files.items():
            (source / path).parent.mkdir(parents=True, exist_ok=True)
            (source / path).write_bytes(content)
        rules = [
            {"owner": None, "group": None, "mode": None, "when": True, **rule}
            for rule in options.pop("files", [])
        ]
        defaults = {"owner": OWNER, "group": GROUP, "mode": "0644", "dir_mode": "0755"}
        return {"src": str(source), "dest": dest, **defaults, **options, "files": rules}

    def request(
        self,
        *trees: dict[str, t.Any],
        build: t.Sequence[task.Command] = (),
        validate: t.Sequence[task.Command] = (),
        name: str = NAME,
    ) -> core.Request:
        sources: list[Path | None] = [Path(tree["src"]) for tree in trees]
        laid, faults = task.resolve(name, list(trees), sources, list(build), list(validate))
        assert faults == []
        contents = {file.path: Path(file.source).read_bytes() for file in laid if file.source}
        laid, contents = task.unpack(task.pack(laid, contents))
        return core.Request(name, list(trees), list(build), list(validate), laid, contents)

    def deploy(
        self,
        request: core.Request,
        check: bool = False,
        step: t.Callable[[str], None] = lambda _name: None,
    ) -> core.Outcome:
        def runner(argv: list[str], cwd: str) -> tuple[int, str, str]:
            if argv[0] == "systemctl":
                return 0, self.unit, ""
            self.commands.append(argv)
            return run_command(argv, cwd)

        return core.deploy(request, landing.Disk(str(self.root), step), runner, check)

    def lay(self, *trees: dict[str, t.Any], check: bool = False, **request: t.Any) -> core.Outcome:
        return self.deploy(self.request(*trees, **request), check)

    def write(self, path: str, content: bytes, mode: int = 0o644) -> Path:
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        file.chmod(mode)
        return file

    def files(self, below: str = "etc") -> dict[str, tuple[bytes, int]]:
        return {
            f"/{path.relative_to(self.root)}": (
                path.read_bytes(),
                stat.S_IMODE(path.stat().st_mode),
            )
            for path in sorted((self.root / below).rglob("*"))
            if path.is_file()
        }

    def contents(self) -> Contents:
        return {path: content for path, (content, _mode) in self.files().items()}

    def last_good(self) -> dict[str, bytes | None]:
        base = self.root / STATE / "last_good"
        index = json.loads((base / "index.json").read_text())["files"]
        return {
            path: (base / f"files{path}").read_bytes() if entry else None
            for path, entry in index.items()
        }


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is flushed, and when, has a test of its own; thousands of landings need not wait."""
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)


# Parameters


def faults_of(host: Host, *trees: dict[str, t.Any], **options: t.Any) -> list[str]:
    sources = [Path(tree["src"]) if tree["src"] else None for tree in trees]
    build, validate = options.get("build", []), options.get("validate", [])
    return task.resolve(options.get("name", NAME), list(trees), sources, build, validate)[1]


def test_all_faults_of_the_parameters_come_at_once(host: Host) -> None:
    tree = host.tree(
        {"a": b"", "b/c": b""},
        dest="etc/app",
        mode="644",
        files=[{"path": "a", "mode": "rw"}, {"path": "typo"}],
    )
    again = host.tree({"x": b"", "y": b""}, dest="/etc/two")
    missing = {**again, "src": None, "dest": "/etc/../etc/two/"}
    faults = "\n".join(
        faults_of(
            host,
            tree,
            again,
            again,
            missing,
            host.tree({"y/z": b""}, dest="/etc/two"),
            build=[builder("true $1", "/elsewhere/x"), {"argv": ["make"], "creates": []}],
            validate=[{"argv": ["postfix", "check"], "stderr": "ignore"}],
            name="../up",
        )
    )
    for expected in (
        "name: '../up'",
        "trees[0].dest: 'etc/app'",
        "trees[0].mode: '644'",
        "trees[0].files[0].mode: 'rw'",
        "trees[0].files[1].path: 'typo' is no file of the tree",
        "trees[3].src: no directory None",
        "trees[3].dest: '/etc/../etc/two/'",
        "/etc/two/x is laid more than once",
        "/etc/two/y is both a file and a directory",
        "build[0].creates: '/elsewhere/x'",
        "build: ['make'] does not mention {stage}",
        "validate: ['postfix', 'check'] does not mention {stage}",
    ):
        assert expected in faults


def test_the_root_directory_is_no_dest(host: Host) -> None:
    assert "not /" in faults_of(host, host.tree({"a": b""}, dest="/"))[0]


def test_the_first_rule_that_matches_counts_and_a_star_stops_at_a_slash(host: Host) -> None:
    rules = [
        {"path": "bin/*", "mode": "0755"},
        {"path": "bin/sub/tool", "mode": "0700"},
        {"path": "*", "mode": "0600"},
        {"path": "conf", "mode": "0666"},
    ]
    tree = host.tree({"bin/tool": b"", "bin/sub/tool": b"", "conf.j2": b""}, files=rules)
    request = task.resolve(NAME, [tree], [Path(tree["src"])], [], [])
    assert {file.path: file.mode for file in request[0]} == {
        "/etc/app/bin/tool": "0755",
        "/etc/app/bin/sub/tool": "0700",
        "/etc/app/conf": "0600",
    }
    assert request[1] == ["trees[0].files[3].path: 'conf' is no file of the tree"]


def test_a_file_whose_when_is_false_is_removed(host: Host) -> None:
    files = {"a": b"1", "b": b"2"}
    host.lay(host.tree(files))
    outcome = host.lay(host.tree(files, files=[{"path": "b", "when": False}]))
    assert outcome.files == ["/etc/app/b"]
    assert host.contents() == {"/etc/app/a": b"1"}


@given(st.dictionaries(st.sampled_from(["a", "b", "c"]), st.binary()))
def test_content_survives_the_journey(contents: Contents) -> None:
    laid = [task.Laid(path, "root", "root", "0644", "x") for path in contents]
    assert task.unpack(task.pack(laid, contents)) == (laid, contents)


def test_what_is_sent_shows_no_secret() -> None:
    packed = task.pack([task.Laid("/a", "o", "g", "0600", "x")], {"/a": b"hunter2" * 9})
    assert "hunter2" not in packed
    assert " " not in packed


# Landing


def test_files_land_with_their_modes_and_a_second_run_changes_nothing(host: Host) -> None:
    tree = host.tree(
        {"main": b"x\n", "sub/deep/more": b"\0\xff", "key": b"k"},
        files=[{"path": "key", "mode": "0600"}],
        dir_mode="0750",
    )
    outcome = host.lay(tree)
    assert outcome.changed
    assert outcome.files == ["/etc/app/key", "/etc/app/main", "/etc/app/sub/deep/more"]
    assert host.files() == {
        "/etc/app/main": (b"x\n", 0o644),
        "/etc/app/sub/deep/more": (b"\0\xff", 0o644),
        "/etc/app/key": (b"k", 0o600),
    }
    assert stat.S_IMODE((host.root / "etc/app/sub/deep").stat().st_mode) == 0o750
    assert stat.S_IMODE((host.root / "etc").stat().st_mode) == 0o755
    assert host.lay(tree) == core.Outcome()
    assert host.lay(tree, check=True) == core.Outcome()


def test_only_what_changed_is_written(host: Host) -> None:
    host.lay(host.tree({"a": b"1", "b": b"2"}))
    inodes = {path.name: path.stat().st_ino for path in (host.root / "etc/app").iterdir()}
    assert host.lay(host.tree({"a": b"1", "b": b"new"})).files == ["/etc/app/b"]
    assert (host.root / "etc/app/a").stat().st_ino == inodes["a"]
    assert (host.root / "etc/app/b").stat().st_ino != inodes["b"]


def test_files_that_left_the_tree_leave_the_host_with_the_directories_made_for_them(
    host: Host,
) -> None:
    host.write("/etc/app/theirs", b"t")
    host.lay(host.tree({"a": b"", "x/y/z": b"", "v/w": b""}))
    host.write("/etc/app/v/admin", b"kept")
    outcome = host.lay(host.tree({"a": b""}))
    assert outcome.files == ["/etc/app/v/w", "/etc/app/x/y/z"]
    assert host.contents() == {
        "/etc/app/a": b"",
        "/etc/app/theirs": b"t",
        "/etc/app/v/admin": b"kept",
    }
    assert not (host.root / "etc/app/x").exists()


def test_no_trees_at_all_take_everything_back(host: Host) -> None:
    host.lay(host.tree({"a": b"", "b/c": b""}))
    assert host.lay().files == ["/etc/app/a", "/etc/app/b/c"]
    assert not (host.root / "etc").exists()
    assert host.lay() == core.Outcome()


def test_a_file_turns_into_a_directory_and_back(host: Host) -> None:
    first, second = host.tree({"a": b"1", "b/c": b"2"}), host.tree({"a/x": b"3", "b": b"4"})
    host.lay(first)
    assert host.lay(second).files == ["/etc/app/a", "/etc/app/a/x", "/etc/app/b", "/etc/app/b/c"]
    assert host.contents() == {"/etc/app/a/x": b"3", "/etc/app/b": b"4"}
    host.lay(first)
    assert host.contents() == {"/etc/app/a": b"1", "/etc/app/b/c": b"2"}


@pytest.mark.parametrize("harm", ["edit", "remove", "mode", "link", "fifo"])
def test_what_someone_did_to_a_managed_file_is_put_right(host: Host, harm: str) -> None:
    tree = host.tree({"a": b"1", "b": b"2"})
    host.lay(tree)
    file = host.root / "etc/app/a"
    if harm == "mode":
        file.chmod(0o666)
    else:
        file.unlink()
    if harm == "edit":
        file.write_bytes(b"harm")
    elif harm == "link":
        file.symlink_to(host.write("/etc/passwd", b"untouched"))
    elif harm == "fifo":
        os.mkfifo(file)
    predicted = host.lay(tree, check=True)
    outcome = host.lay(tree)
    assert predicted.files == outcome.files == ["/etc/app/a"]
    assert not file.is_symlink()
    assert host.files()["/etc/app/a"] == (b"1", 0o644)
    assert host.contents().get("/etc/passwd", b"untouched") == b"untouched"


def test_a_directory_of_ours_is_put_right_and_one_that_was_there_is_left_alone(host: Host) -> None:
    (host.root / "etc").mkdir()
    (host.root / "etc").chmod(0o700)
    tree = host.tree({"a": b""}, validate=[])
    host.lay(tree)
    (host.root / "etc/app").chmod(0o777)
    assert host.lay(tree).files == ["/etc/app"]
    assert stat.S_IMODE((host.root / "etc/app").stat().st_mode) == 0o755
    assert stat.S_IMODE((host.root / "etc").stat().st_mode) == 0o700
    assert not host.lay(tree).changed


def test_obstacles_are_named_together_and_nothing_changes(host: Host) -> None:
    host.write("/etc/app/sub", b"a file")
    host.write("/etc/app/main/child", b"in a directory")
    before = host.files()
    with pytest.raises(core.ConfigTreeError) as caught:
        host.lay(host.tree({"sub/x": b"", "main": b""}, owner="nobody-here"))
    for words in (
        "/etc/app/sub must be a directory",
        "/etc/app/main is a directory",
        "owner 'nobody-here' of /etc/app/main does not exist",
    ):
        assert words in str(caught.value)
    assert host.files() == before


def test_check_mode_tolerates_an_owner_who_is_not_there_yet(host: Host) -> None:
    tree = host.tree({"a": b"1"}, owner="nobody-here", group="nobody-here")
    assert host.lay(tree, check=True, validate=[validator("cat $1/etc/app/a")]).files == [
        "/etc/app/a"
    ]


def test_each_configuration_owns_its_own_files(host: Host) -> None:
    host.lay(host.tree({"a": b""}), name="one")
    host.lay(host.tree({"b": b""}), name="two")
    assert host.lay(name="one").files == ["/etc/app/a"]
    assert host.contents() == {"/etc/app/b": b""}


def test_the_replaced_set_is_kept_as_last_good(host: Host) -> None:
    host.write("/etc/app/original", b"of the package", 0o640)
    host.lay(host.tree({"original": b"ours", "new": b"n", "gone": b"g"}))
    assert host.last_good() == {
        "/etc/app/original": b"of the package",
        "/etc/app/new": None,
        "/etc/app/gone": None,
    }
    kept = host.root / STATE / "last_good/files/etc/app/original"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o640
    host.lay(host.tree({"original": b"ours", "new": b"newer"}))
    assert host.last_good() == {"/etc/app/new": b"n", "/etc/app/gone": b"g"}
    host.lay(host.tree({"original": b"ours", "new": b"newer"}))
    assert host.last_good() == {"/etc/app/new": b"n", "/etc/app/gone": b"g"}
    assert [path.name for path in (host.root / STATE).glob("landing-*")] == []


def test_what_is_remembered_is_private(host: Host) -> None:
    host.lay(host.tree({"a": b""}))
    for path in ("var/lib/hikyaku/config", STATE, "run/hikyaku-config"):
        assert stat.S_IMODE((host.root / path).stat().st_mode) == 0o700
    manifest = json.loads((host.root / STATE / "manifest.json").read_text())
    assert manifest["files"]["/etc/app/a"] == {
        "sha256": core._sha256(b""),
        "mode": "0644",
        "uid": os.getuid(),
        "gid": os.getgid(),
    }


# Commands


def test_a_refused_configuration_changes_nothing_and_the_parser_is_quoted(host: Host) -> None:
    host.lay(host.tree({"main": b"good\n"}))
    before = host.files("")
    grumble = 'echo "$1/etc/app/main line 1: no such setting" >&2; exit 3'
    with pytest.raises(core.ConfigTreeError) as caught:
        host.lay(
            host.tree({"main": b"bad\n"}),
            validate=[validator(grumble), validator("echo second >&2; exit 1")],
        )
    assert "(rc 3): /etc/app/main line 1: no such setting" in str(caught.value)
    assert "second" in str(caught.value)
    assert caught.value.details["rc"] == 3
    assert caught.value.details["argv"][0] == "sh"
    assert caught.value.details["stderr"] == "/etc/app/main line 1: no such setting\n"
    assert host.files("") == before
    assert not (host.root / "run/hikyaku-config/mta").exists()


def test_stderr_alone_is_a_refusal_if_asked_for(host: Host) -> None:
    tree, warning = host.tree({"a": b""}), "echo careful >&2; : $1"
    with pytest.raises(core.ConfigTreeError, match="careful"):
        host.lay(tree, validate=[validator(warning, stderr="fail")])
    assert host.lay(tree, validate=[validator(warning)]).changed


def test_a_program_that_is_missing_is_skipped_in_check_mode_only(host: Host) -> None:
    tree, parser = host.tree({"a": b""}), {"argv": ["no-such-parser", "{stage}"]}
    outcome = host.lay(tree, validate=[parser], check=True)
    assert outcome.skipped_commands == [["no-such-parser", "{stage}"]]
    assert outcome.files == ["/etc/app/a"]
    with pytest.raises(core.ConfigTreeError, match="no-such-parser is not installed"):
        host.lay(tree, validate=[parser])


def test_the_stage_mirrors_what_will_be_and_protects_what_is(host: Host) -> None:
    host.write("/etc/app/theirs", b"theirs", 0o640)
    host.write("/etc/app/sub/more", b"more")
    host.write("/etc/elsewhere", b"elsewhere")
    host.write("/etc/app/old", b"old")
    (host.root / "etc/app/inner").symlink_to("sub/more")
    (host.root / "etc/app/outer").symlink_to("../elsewhere")
    os.mkfifo(host.root / "etc/app/fifo")
    host.lay(host.tree({"gone": b"", "sub/ours": b"1"}))
    listing = host.base / "listing"
    script = f"""
        cd $1/etc/app && find . | sort >{listing} && stat -c %a . theirs "$1" >>{listing}
        cat inner outer >>{listing} && readlink inner >>{listing}
        echo overwritten >theirs; echo overwritten >inner; chmod 777 sub
    """
    host.lay(host.tree({"sub/ours": b"2", "new": b""}), validate=[validator(script)])
    lines = listing.read_text().splitlines()
    names = [".", "./inner", "./new", "./old", "./outer", "./sub", "./sub/more", "./sub/ours"]
    assert lines[: len(names) + 1] == [*names, "./theirs"]
    assert lines[-4:-1] == ["755", "640", "700"]
    assert lines[-1].startswith("moreelsewhere")
    assert lines[-1].endswith("run/hikyaku-config/mta/etc/app/sub/more")
    assert host.contents() == {
        "/etc/app/theirs": b"theirs",
        "/etc/app/sub/more": b"more",
        "/etc/app/sub/ours": b"2",
        "/etc/app/inner": b"more",
        "/etc/app/outer": b"elsewhere",
        "/etc/app/new": b"",
        "/etc/app/old": b"old",
        "/etc/elsewhere": b"elsewhere",
    }


def test_trees_within_trees(host: Host) -> None:
    host.write("/etc/app/sub/theirs", b"t")
    trees = [host.tree({"a": b"1"}), host.tree({"b": b"2"}, dest="/etc/app/sub")]
    check = validator("cat $1/etc/app/a $1/etc/app/sub/b $1/etc/app/sub/theirs")
    assert host.lay(*trees, validate=[check]).files == ["/etc/app/a", "/etc/app/sub/b"]


def test_what_a_command_builds_lands_with_the_rest(host: Host) -> None:
    double = builder("cat $1/etc/app/m $1/etc/app/m >$1/etc/app/m.db", "/etc/app/m.db")
    see = validator("grep -q y $1/etc/app/m.db")
    assert host.lay(host.tree({"m": b"y"}), build=[double], validate=[see]).files == [
        "/etc/app/m",
        "/etc/app/m.db",
    ]
    assert host.files()["/etc/app/m.db"][0] == b"yy"
    host.commands.clear()
    assert not host.lay(host.tree({"m": b"y"}), build=[double], validate=[see]).changed
    assert host.commands == [], "nothing changed, so nothing had to be built"
    (host.root / "etc/app/m.db").write_bytes(b"harm")
    assert host.lay(host.tree({"m": b"y"}), build=[double], validate=[see]).files == [
        "/etc/app/m.db"
    ]
    (host.root / "etc/app/m.db").unlink()
    assert host.lay(host.tree({"m": b"y"}), build=[double], validate=[see]).changed
    assert host.lay(host.tree({"m": b"y"})).files == ["/etc/app/m.db"]
    assert host.contents() == {"/etc/app/m": b"y"}


def test_an_output_keeps_the_mode_its_command_gave_unless_a_rule_says_otherwise(
    host: Host,
) -> None:
    make = builder("cd $1/etc/app; touch x y; chmod 640 x y", "/etc/app/x", "/etc/app/y")
    host.lay(host.tree({}, files=[{"path": "y", "mode": "0600"}]), build=[make])
    assert {path: mode for path, (_content, mode) in host.files().items()} == {
        "/etc/app/x": 0o640,
        "/etc/app/y": 0o600,
    }


def test_a_command_that_fails_or_forgets_its_output_is_an_error(host: Host) -> None:
    tree = host.tree({"a": b""})
    with pytest.raises(core.ConfigTreeError, match="did not make /etc/app/x"):
        host.lay(tree, build=[builder("true $1", "/etc/app/x")])
    with pytest.raises(core.ConfigTreeError, match="no space"):
        host.lay(tree, build=[builder("echo no space; false $1", "/etc/app/x")])
    assert host.files() == {}


def test_an_output_whose_builder_is_not_installed_is_predicted(host: Host) -> None:
    make = {"argv": ["no-such-builder", "{stage}"], "creates": ["/etc/app/x"]}
    outcome = host.lay(host.tree({"a": b""}), build=[make], check=True)
    assert outcome.files == ["/etc/app/a", "/etc/app/x"]
    assert outcome.skipped_commands == [["no-such-builder", "{stage}"]]


def test_other_commands_are_run_even_if_no_file_changes(host: Host) -> None:
    tree = host.tree({"a": b""})
    host.lay(tree)
    assert not host.lay(tree, validate=[validator("true $1")]).changed
    assert len(host.commands) == 1
    host.lay(tree, validate=[validator("true $1")])
    assert len(host.commands) == 1


# Diff


def diff_of(outcome: core.Outcome) -> dict[str, tuple[str, str]]:
    return {entry["after_header"]: (entry["before"], entry["after"]) for entry in outcome.diff}


def test_a_diff_shows_each_file_before_and_after(host: Host) -> None:
    host.lay(host.tree({"a": b"1\n", "gone": b"g\n", "m": b"same\n"}))
    tree = host.tree(
        {"a": b"2\n", "new": b"n\n", "m": b"same\n"}, files=[{"path": "m", "mode": "0755"}]
    )
    assert diff_of(host.lay(tree)) == {
        "/etc/app/a": ("1\n", "2\n"),
        "/etc/app/gone": ("g\n", ""),
        "/etc/app/m": ("same\n", "mode: 0644 → 0755\nsame\n"),
        "/etc/app/new": ("", "n\n"),
    }


@pytest.mark.parametrize(("old", "new"), [("0600", "0600"), ("0640", "0644"), ("0644", "0660")])
def test_a_diff_shows_no_secret(host: Host, old: str, new: str) -> None:
    host.lay(host.tree({"key": b"hunter2\n"}, mode=old))
    [(before, after)] = diff_of(host.lay(host.tree({"key": b"hunter3\n"}, mode=new))).values()
    assert "hunter" not in before + after
    assert "(secret, HMAC-SHA-256 " in before
    assert before != after
    again = diff_of(host.lay(host.tree({"key": b"hunter2\n"}, mode=old)))
    assert before not in again["/etc/app/key"][1], "the key is another in each run"


@pytest.mark.parametrize("content", [b"\0", b"\xff", b"x" * 200_000])
def test_a_diff_shows_no_content_that_is_no_text_for_people(host: Host, content: bytes) -> None:
    [(_before, after)] = diff_of(host.lay(host.tree({"a": content}))).values()
    assert after.startswith("(not text, HMAC-SHA-256 ")


# Check mode and real runs agree, whatever the trees

NAMES = st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map("/".join)


def is_possible(files: dict[str, t.Any]) -> bool:
    return not any(other.startswith(f"{path}/") for path in files for other in files)


def trees() -> st.SearchStrategy[dict[str, tuple[bytes, str]]]:
    entry = st.tuples(st.sampled_from([b"", b"1\n", b"2\n"]), st.sampled_from(["0644", "0600"]))
    return st.dictionaries(NAMES, entry, max_size=6).filter(is_possible)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(trees(), min_size=1, max_size=3), trees())
def test_any_sequence_of_trees(
    sequence: list[dict[str, tuple[bytes, str]]], theirs: dict[str, tuple[bytes, str]]
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        host = Host(Path(directory))
        (host.root / "etc/app").mkdir(parents=True)
        for path, (content, mode) in theirs.items():
            host.write(f"/etc/app/{path}", content, int(mode, 8))
        adopted: set[str] = set()
        for files in sequence:
            rules = [{"path": path, "mode": mode} for path, (_content, mode) in files.items()]
            tree = host.tree({path: c for path, (c, _mode) in files.items()}, files=rules)
            request = host.request(tree, validate=[validator("find $1 >&2")])
            before = host.files()
            try:
                predicted = host.deploy(request, check=True)
            except core.ConfigTreeError:  # their files are in the way
                assert host.files() == before
                with pytest.raises(core.ConfigTreeError):
                    host.deploy(request)
                assert host.files() == before
                continue
            assert host.files() == before
            outcome = host.deploy(request)
            assert (predicted.changed, predicted.files) == (outcome.changed, outcome.files)
            adopted |= set(files)
            left = {path: entry for path, entry in theirs.items() if path not in adopted}
            wanted = {f"/etc/app/{p}": (c, int(m, 8)) for p, (c, m) in {**left, **files}.items()}
            after = host.files()
            assert after == wanted
            assert outcome.files == sorted(
                path for path in {*before, *after} if before.get(path) != after.get(path)
            )
            if outcome.changed:
                assert host.last_good() == {
                    path: before[path][0] if path in before else None for path in outcome.files
                }
            assert host.deploy(request) == core.Outcome()
            assert host.deploy(request, check=True) == core.Outcome()


def test_two_hundred_files_are_fast(host: Host) -> None:
    tree = host.tree({f"d{i % 10}/f{i}": f"{i}\n".encode() * 50 for i in range(200)})
    request = host.request(tree, validate=[validator("true $1")])
    start = time.monotonic()
    assert len(host.deploy(request).files) == 200
    landed = time.monotonic()
    assert host.deploy(request) == core.Outcome()
    assert time.monotonic() - landed < 1, "a run that changes nothing looks, and no more"
    assert landed - start < 30


# Kills and failures


class Crash(t.NamedTuple):
    first: core.Request
    second: core.Request
    old: dict[str, tuple[bytes, int]]
    new: dict[str, tuple[bytes, int]]
    files: list[str]


def crash_case(host: Host) -> Crash:
    host.write("/etc/app/package", b"of the package")
    first = host.request(
        host.tree({"a": b"1", "b": b"same", "gone/x": b"g", "file": b"f", "dir/y": b"d"})
    )
    second = host.request(
        host.tree(
            {"a": b"2", "b": b"same", "package": b"ours", "new/z": b"n", "file/f": b"", "dir": b""}
        ),
        validate=[validator("true $1")],
    )
    host.deploy(first)
    old = host.files()
    names = {"a": b"2", "b": b"same", "package": b"ours", "new/z": b"n", "file/f": b"", "dir": b""}
    new = {f"/etc/app/{name}": (content, 0o644) for name, content in names.items()}
    files = [f"/etc/app/{n}" for n in ("a", "dir", "dir/y", "file", "file/f", "gone/x", "new/z")]
    return Crash(first, second, old, new, [*files, "/etc/app/package"])


def killed_at(number: int) -> t.Callable[[str], None]:
    left = itertools.count(number, -1)

    def step(_name: str) -> None:
        if next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)  # no exception, no clean-up: a kill is a kill

    return step


def dies(host: Host, request: core.Request, number: int) -> bool:
    """Deploy in a process that is killed before its step of that number, if it has one."""
    process = multiprocessing.get_context("fork").Process(
        target=host.deploy, args=(request,), kwargs={"step": killed_at(number)}
    )
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def assert_old_or_new(host: Host, case: Crash) -> None:
    now = host.files()
    for path in {*case.old, *case.new, *now}:
        if not path.endswith(landing.TEMPORARY_SUFFIX):
            assert now.get(path) in (case.old.get(path), case.new.get(path)), path


def test_a_kill_before_any_step_leaves_each_file_old_or_new_and_the_next_run_finishes(
    tmp_path: Path,
) -> None:
    committed = 0
    for number in itertools.count():
        (tmp_path / str(number)).mkdir()
        host = Host(tmp_path / str(number))
        case = crash_case(host)
        original = {path: case.old[path][0] if path in case.old else None for path in case.files}
        if not dies(host, case.second, number):
            break
        assert_old_or_new(host, case)
        predicted = host.deploy(case.second, check=True)
        outcome = host.deploy(case.second)
        assert host.files() == case.new
        assert predicted.files == outcome.files
        assert predicted.changed == outcome.changed
        if outcome.resumed:
            committed += 1
        # Once the landing is forgotten it was complete, the kill only hit the clearing away.
        assert outcome.files in ([], case.files)
        assert outcome.files or not (host.root / STATE / "pending").exists()
        assert host.last_good() == original
        assert host.deploy(case.second) == core.Outcome()
        assert list((host.root / STATE).glob("landing-*")) == []
    assert number > 40
    assert committed > 20


def test_a_run_that_wants_something_else_finishes_the_interrupted_landing_first(
    tmp_path: Path,
) -> None:
    for number in itertools.count(0, 3):
        (tmp_path / str(number)).mkdir()
        host = Host(tmp_path / str(number))
        case = crash_case(host)
        if not dies(host, case.second, number):
            break
        interrupted = (host.root / STATE / "pending").exists()
        theirs = {"/etc/app/package": b"of the package"}
        untouched = {} if interrupted or host.files() == case.new else theirs
        refused = host.request(host.tree({"a": b"3"}), validate=[validator("exit 1; $1")])
        for _ in range(2):  # refused twice, and still not forgotten
            with pytest.raises(core.ConfigTreeError):
                host.deploy(refused)
            if interrupted:
                assert host.files() == case.new
        third = host.request(host.tree({"a": b"3", "b": b"same"}))
        predicted = host.deploy(third, check=True)
        outcome = host.deploy(third)
        assert host.contents() == {"/etc/app/a": b"3", "/etc/app/b": b"same", **untouched}
        assert predicted.files == outcome.files
        assert outcome.resumed == interrupted
        assert "/etc/app/a" in outcome.files
        assert "/etc/app/b" not in outcome.files
        assert host.deploy(third) == core.Outcome()


def test_a_kill_while_a_kill_is_repaired(tmp_path: Path) -> None:
    for first in range(0, 60, 7):
        (tmp_path / str(first)).mkdir()
        host = Host(tmp_path / str(first))
        case = crash_case(host)
        dies(host, case.second, first)
        for second in itertools.count():
            if not dies(host, case.second, second):
                break
            assert_old_or_new(host, case)
        assert host.files() == case.new
        assert host.deploy(case.second) == core.Outcome()


def test_a_kill_of_the_parser_changes_nothing(host: Host) -> None:
    host.lay(host.tree({"a": b"1"}))
    before = host.files()
    request = host.request(host.tree({"a": b"2"}), validate=[validator("kill -9 $PPID; : $1")])
    process = multiprocessing.get_context("fork").Process(target=host.deploy, args=(request,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert host.files() == before
    assert host.lay(host.tree({"a": b"2"}), validate=[validator("true $1")]).changed
    assert not (host.root / "run/hikyaku-config/mta").exists()


def test_a_failure_of_the_disk_brings_the_old_files_back(tmp_path: Path) -> None:
    failures = 0
    for number in itertools.count():
        (tmp_path / str(number)).mkdir()
        host = Host(tmp_path / str(number))
        case = crash_case(host)
        left = itertools.count(number, -1)

        def step(_name: str, left: t.Iterator[int] = left) -> None:
            if next(left) == 0:
                raise OSError("No space left on device")

        try:
            host.deploy(case.second, step=step)
            break
        except landing.LandingError:
            failures += 1
            assert host.files() == case.old
        except OSError:  # before the moment of truth, or when all has landed
            assert host.files() in (case.old, case.new)
        host.deploy(case.second)
        assert host.files() == case.new
        assert host.deploy(case.second) == core.Outcome()
    assert failures > 10


def test_a_disk_that_fails_for_good_leaves_the_landing_to_the_next_run(tmp_path: Path) -> None:
    messages = set()
    for number in range(60):
        (tmp_path / str(number)).mkdir()
        host = Host(tmp_path / str(number))
        case = crash_case(host)
        left = itertools.count(number, -1)

        def step(_name: str, left: t.Iterator[int] = left) -> None:
            if next(left) <= 0:
                raise OSError("Input/output error")

        try:
            host.deploy(case.second, step=step)
        except (OSError, landing.LandingError) as error:
            messages.add(str(error))
        assert_old_or_new(host, case)
        host.deploy(case.second)
        assert host.files() == case.new
    assert any("so did going back" in message for message in messages)


def test_nothing_is_renamed_before_it_is_on_the_disk(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = crash_case(host)
    written: set[str] = set()
    flushed: set[str] = set()
    renamed: dict[str, str] = {}

    def fsync(descriptor: int) -> None:
        path = str(Path(f"/proc/self/fd/{descriptor}").readlink())
        flushed.add(path)
        renamed.pop(path, None)

    def step(name: str) -> None:
        action, path, *target = name.split()
        if action == "write":
            written.add(path)
            flushed.discard(path)
        elif action == "rename":
            assert path not in written or path in flushed, name
            renamed[str(Path(target[0]).parent)] = name
            if target[0].endswith("/pending"):
                assert written <= flushed, "all of the landing is safe at the moment of truth"
                assert not set(renamed) - {str(Path(target[0]).parent)} - flushed

    monkeypatch.setattr(os, "fsync", fsync)
    host.deploy(case.second, step=step)
    assert len(written) > 10
    assert renamed == {}, "every directory was flushed after its last rename"


def test_two_runs_do_not_interleave(host: Host) -> None:
    log = host.base / "log"
    script = f"echo start >>{log}; sleep 0.2; echo end >>{log}; : $1"
    context = multiprocessing.get_context("fork")
    requests = [
        host.request(host.tree({"a": b"%d" % i}), validate=[validator(script)], name=f"n{i}")
        for i in range(3)
    ]
    runs = [context.Process(target=host.deploy, args=(request,)) for request in requests]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
        assert run.exitcode == 0
    assert log.read_text().split() == ["start", "end"] * 3


def test_a_lock_that_is_held_for_too_long_is_an_error(host: Host) -> None:
    disk = landing.Disk(str(host.root))
    with disk.lock(), pytest.raises(landing.LandingError, match="another run"), disk.lock(0.1):
        pass


@pytest.fixture
def systemctl(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with systemd, whatever this one is."""
    program = host.base / "bin" / "systemctl"
    program.parent.mkdir()
    program.touch(0o755)
    monkeypatch.setattr(core, "SEARCH_PATH", f"{program.parent}:{core.SEARCH_PATH}")


def unit_state(state: str, changed: float) -> str:
    """As `systemctl show` has it; ``changed`` in seconds from now."""
    microseconds = int((time.monotonic() + changed) * 1e6)
    return f"ActiveState={state}\nStateChangeTimestampMonotonic={microseconds}\n"


@pytest.mark.usefixtures("systemctl")
@pytest.mark.parametrize("check", [False, True])
def test_a_file_that_its_unit_has_not_read_is_told_of_again(host: Host, check: bool) -> None:
    trees = [
        host.tree({"main.cf": b"1"}, unit="app.service"),
        host.tree({"else": b"1"}, dest="/etc/else"),
    ]
    host.lay(*trees)
    host.unit = unit_state("active", -60)  # the handler never ran
    again = host.lay(*trees, check=check)
    assert (again.changed, again.files, again.diff) == (True, ["/etc/app/main.cf"], [])
    host.unit = unit_state("active", 60)
    assert not host.lay(*trees, check=check).changed


@pytest.mark.usefixtures("systemctl")
@pytest.mark.parametrize("state", ["inactive", "failed", "activating"])
def test_a_unit_that_is_not_active_reads_the_files_when_it_starts(host: Host, state: str) -> None:
    tree = host.tree({"main.cf": b"1"}, unit="app.service")
    host.lay(tree)
    host.unit = unit_state(state, -60)
    assert not host.lay(tree).changed


@pytest.mark.usefixtures("systemctl")
def test_a_clock_that_was_set_back_asks_for_no_reload(host: Host) -> None:
    tree = host.tree({"main.cf": b"1"}, unit="app.service")
    host.lay(tree)
    tomorrow = time.time() + 86400
    os.utime(host.root / "etc/app/main.cf", (tomorrow, tomorrow))
    host.unit = unit_state("active", -60)
    assert not host.lay(tree).changed
