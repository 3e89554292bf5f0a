# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) 2026, hikyaku.mail contributors
"""dkim_key and dkim_key_info as Ansible calls them."""

from __future__ import annotations

import base64
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.hikyaku.mail.plugins.module_utils import dkim, dkim_files
from ansible_collections.hikyaku.mail.plugins.modules import dkim_key, dkim_key_info

SELECTORS = [{"selector": "r1", "type": "rsa"}, {"selector": "e1", "type": "ed25519"}]


class Runner:
    def __init__(self, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.directory = directory
        self.template = f"{directory}/{{domain}}.{{selector}}.key"
        self.capsys = capsys

    def __call__(self, *, check: bool = False, **arguments: Any) -> dict[str, Any]:
        arguments = {"path_template": self.template, **arguments}
        if not {"domains", "keys"} & set(arguments):
            arguments |= {"domains": ["example.test"], "selectors": SELECTORS}
        return self.call(dkim_key.main, arguments | {"_ansible_check_mode": check})

    def info(self, **arguments: Any) -> dict[str, Any]:
        return self.call(dkim_key_info.main, {"path_template": self.template, **arguments})

    def call(self, main: Callable[[], None], arguments: dict[str, Any]) -> dict[str, Any]:
        old = self.secrets()
        with patch_module_args(arguments), pytest.raises(SystemExit):
            main()
        output = self.capsys.readouterr().out
        for secret in old | self.secrets():
            assert secret not in output
        result: dict[str, Any] = json.loads(output)
        return result

    def secrets(self) -> set[str]:
        """A line of each private key, from its secret part: none may be in what a module prints."""
        lines = [path.read_text().splitlines() for path in self.directory.glob("*.key*")]
        keys = [each for each in lines if "PRIVATE" in each[0] or len(each[0]) == 44]
        return {each[-3] if len(each) > 3 else each[len(each) // 2] for each in keys}

    def content(self, selector: str) -> bytes:
        return Path(self.template.format(domain="example.test", selector=selector)).read_bytes()


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Runner:
    return Runner(tmp_path, capsys)


@pytest.fixture
def written(run: Runner) -> Iterator[Runner]:
    run()
    yield run


def test_check_run_again_and_again_with_check(run: Runner) -> None:
    predicted = run(check=True)
    assert list(run.directory.iterdir()) == []
    done = run()
    assert predicted["changed"] and done["changed"]
    for before, after in zip(predicted["dkim_keys"], done["dkim_keys"], strict=True):
        unknown = {"txt": None, "strings": [], "fingerprint_sha256": None}
        assert before == {**after, **unknown}
    again = run()
    assert not again["changed"]
    assert predicted["records"] == []
    assert [set(record) for record in done["records"]] == [{"name", "txt"}] * 2
    quiet = [{**key, "changed": False, "created": False} for key in done["dkim_keys"]]
    assert again["dkim_keys"] == quiet == run(check=True)["dkim_keys"]
    assert again["diff"] == {"before": "", "after": ""}


def test_what_is_told_of_a_key(run: Runner) -> None:
    rsa, ed25519 = run()["dkim_keys"]
    assert rsa["name"] == "r1._domainkey.example.test"
    assert (rsa["type"], rsa["bits"], rsa["created"]) == ("rsa", 2048, True)
    assert rsa["txt"] == "".join(rsa["strings"])
    assert [len(string) <= 255 for string in rsa["strings"]] == [True, True]
    assert (ed25519["type"], ed25519["bits"], len(ed25519["strings"])) == ("ed25519", 256, 1)
    for key in (rsa, ed25519):
        public = dkim.read_private_key(Path(key["path"]).read_bytes())
        assert dkim.parse_record(key["txt"]).p == public.data
        assert key["fingerprint_sha256"] == public.fingerprint
        assert dkim.check_text(key["txt"]) == []


def test_default_formats_are_those_that_rspamd_loads(written: Runner) -> None:
    assert written.content("r1").startswith(b"-----BEGIN PRIVATE KEY-----\n")
    assert len(base64.b64decode(written.content("e1"), validate=False)) == 32


def test_diff_shows_the_record(run: Runner) -> None:
    result = run(keys=[{"domain": "example.test", "selector": "e1", "type": "ed25519"}])
    after = result["diff"]["after"]
    assert after.startswith('e1._domainkey.example.test. IN TXT "v=DKIM1; k=ed25519; p=')
    removed = run(keys=[{"domain": "example.test", "selector": "e1"}], state="absent")
    assert removed["diff"] == {"before": after, "after": ""}


def test_tags_of_the_record(run: Runner) -> None:
    record = {"h": ["sha256"], "s": ["email"], "t": ["s"], "n": "a;b"}
    (key,) = run(keys=[{"domain": "example.test", "selector": "r1", "record": record}])["dkim_keys"]
    assert key["txt"].startswith("v=DKIM1; k=rsa; h=sha256; s=email; t=s; n=a=3Bb; p=")


def test_names_are_brought_to_one_spelling(run: Runner) -> None:
    (key,) = run(domains=["Bücher.Test."], selectors=[{"selector": "R1.Sub"}])["dkim_keys"]
    assert key["name"] == "r1.sub._domainkey.xn--bcher-kva.test"
    assert Path(key["path"]).name == "xn--bcher-kva.test.r1.sub.key"


def test_all_faults_at_once_and_nothing_made(run: Runner) -> None:
    result = run(
        keys=[
            {"domain": "example.test", "selector": "a_b"},
            {"domain": "example", "selector": "r1"},
            {"domain": "example.test", "selector": "e1", "type": "ed25519", "format": "pkcs1"},
            {"domain": "example.test", "selector": "r1", "path": "relative.key"},
        ],
        domains=["second.test", "Second.test"],
        selectors=[{"selector": "r1"}],
        owner="nobody-of-this-name",
        mode="rw-r-----",
    )
    assert result["failed"]
    assert len(result["faults"]) == 8
    assert list(run.directory.iterdir()) == []


def test_same_file_for_two_keys_is_refused(run: Runner) -> None:
    template = f"{run.directory}/same.key"
    result = run(domains=["a.test", "b.test"], selectors=[SELECTORS[1]], path_template=template)
    assert result["faults"] == [f"domains: {template} twice"]


def test_domains_without_selectors_are_refused(run: Runner) -> None:
    assert "selectors" in run(domains=["a.test"])["msg"]
    assert not run(domains=[], selectors=SELECTORS)["changed"]


# A key that is there and does not fit

WANTED = {"keys": [{"domain": "example.test", "selector": "r1", "bits": 3072}]}


@pytest.mark.parametrize(
    ("regenerate", "fits", "mismatch", "broken"),
    [
        ("never", "kept", "kept", "fault"),
        ("fail", "kept", "fault", "fault"),
        ("partial_idempotence", "kept", "replaced", "fault"),
        ("full_idempotence", "kept", "replaced", "replaced"),
        ("always", "replaced", "replaced", "replaced"),
    ],
)
@pytest.mark.parametrize("check", [True, False])
def test_regenerate(
    written: Runner, regenerate: str, fits: str, mismatch: str, broken: str, check: bool
) -> None:
    def outcome(arguments: dict[str, Any]) -> str:
        old = written.content("r1")
        result = written(regenerate=regenerate, check=check, **arguments)
        replaced = written.content("r1") != old
        assert replaced == (not check and result["changed"])
        if result.get("failed"):
            assert "regenerate" in result["msg"] and not result["changed"]
            return "fault"
        assert result["dkim_keys"][0]["created"] == result["changed"]
        return "replaced" if result["changed"] else "kept"

    assert outcome({"keys": [{"domain": "example.test", "selector": "r1"}]}) == fits
    assert outcome(WANTED) == mismatch
    path = Path(written.template.format(domain="example.test", selector="r1"))
    path.write_text("my poems\nx\nx\nx\nx\nx\n")
    assert outcome(WANTED) == broken


def test_one_key_that_does_not_fit_stops_all(written: Runner) -> None:
    result = written(
        domains=["aaa.test", "example.test"], selectors=[{**SELECTORS[0], "bits": 4096}]
    )
    assert result["failed"]
    assert sorted(path.name for path in written.directory.iterdir()) == [
        "example.test.e1.key",
        "example.test.r1.key",
    ]


def test_another_format_is_converted(written: Runner) -> None:
    before = written()["dkim_keys"]
    selectors = [{**SELECTORS[0], "format": "pkcs1"}, {**SELECTORS[1], "format": "pkcs8"}]
    for check in (True, False):
        result = written(domains=["example.test"], selectors=selectors, check=check)
        assert result["changed"]
        for old, new in zip(before, result["dkim_keys"], strict=True):
            assert new == {**old, "changed": True}
    assert written.content("r1").startswith(b"-----BEGIN RSA PRIVATE KEY-----\n")
    assert not written(domains=["example.test"], selectors=selectors)["changed"]
    kept = written(regenerate="never")
    assert not kept["changed"]


def test_backup(written: Runner) -> None:
    old = written.content("r1")
    result = written(regenerate="always", backup=True)
    backups = [Path(key["backup_file"]) for key in result["dkim_keys"]]
    assert backups[0].read_bytes() == old
    assert backups[0].stat().st_mode & 0o777 == 0o640
    assert not written(backup=True)["changed"]
    assert len(list(written.directory.iterdir())) == 4


def test_absent(written: Runner) -> None:
    assert written(state="absent", check=True)["changed"]
    assert len(list(written.directory.iterdir())) == 2
    result = written(state="absent")
    assert result["changed"]
    assert {key["txt"] for key in result["dkim_keys"]} == {None}
    assert list(written.directory.iterdir()) == []
    assert not written(state="absent")["changed"]


# Files


def test_permissions(run: Runner) -> None:
    old = os.umask(0)
    try:
        path = run()["dkim_keys"][0]["path"]
    finally:
        os.umask(old)
    assert Path(path).stat().st_mode & 0o777 == 0o640
    Path(path).chmod(0o644)
    assert run(check=True)["changed"]
    assert Path(path).stat().st_mode & 0o777 == 0o644
    result = run()
    assert [key["changed"] for key in result["dkim_keys"]] == [True, False]
    assert " 0644\n" in result["diff"]["before"] and " 0640\n" in result["diff"]["after"]
    assert Path(path).stat().st_mode & 0o777 == 0o640


def test_a_replaced_key_keeps_its_owner(written: Runner) -> None:
    path = Path(written.template.format(domain="example.test", selector="r1"))
    if os.geteuid() == 0:
        os.chown(path, 65534, 65534)
    before = path.stat()
    written(regenerate="always", mode="0600")
    after = path.stat()
    assert (after.st_uid, after.st_gid) == (before.st_uid, before.st_gid)
    assert after.st_mode & 0o777 == 0o600


def test_missing_group_is_tolerated_in_check_mode_only(run: Runner) -> None:
    assert run(group="nobody-of-this-name", check=True)["changed"]
    assert run(group="nobody-of-this-name")["failed"]


def test_missing_directory(run: Runner) -> None:
    template = f"{run.directory}/not-yet/{{domain}}.{{selector}}.key"
    assert run(path_template=template, check=True)["changed"]
    result = run(path_template=template)
    assert result["failed"] and "not-yet" in result["msg"]


def test_partial_results_are_kept(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    make = dkim_files.make

    def fail_late(step: dkim_files.Step) -> bytes | None:
        if step.spec.domain == "c.test":
            raise OSError(28, "No space left on device")
        return make(step)

    monkeypatch.setattr(dkim_files, "make", fail_late)
    result = run(domains=["a.test", "b.test", "c.test", "d.test"], selectors=[SELECTORS[1]])
    assert result["failed"] and result["changed"]
    assert [key["domain"] for key in result["dkim_keys"]] == ["a.test", "b.test"]


def test_kill_between_any_two_steps(run: Runner) -> None:
    """Each file is whole, old or new, and the next run needs nobody's help."""
    syncs = 0

    def attempt(kill_at: int) -> int:
        child = os.fork()
        if child == 0:
            count, fsync = iter(range(1000)), os.fsync

            def dying(descriptor: int) -> None:
                if next(count) == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                fsync(descriptor)

            os.fsync = dying
            specs, _faults = dkim_files.read_specs(
                [],
                ["example.test"],
                [SELECTORS[1], {**SELECTORS[1], "selector": "e2"}],
                run.template,
            )
            access = dkim_files.Access(-1, -1, 0o640)
            dkim_files.ensure_keys(specs, access, regenerate="always")
            os._exit(0)
        return os.waitpid(child, 0)[1]

    while attempt(syncs):
        syncs += 1
        for path in run.directory.glob("*.key"):
            dkim.read_private_key(path.read_bytes())
    assert syncs == 4
    assert sorted(path.name for path in run.directory.iterdir()) == [
        "example.test.e1.key",
        "example.test.e2.key",
    ]


def test_unchanged_run_loads_no_key(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [{"domain": f"d{n}.test", "selector": "r1"} for n in range(3)]
    run(keys=keys)
    monkeypatch.setattr(dkim, "generate_private_key", None)
    monkeypatch.setattr("cryptography.hazmat.primitives.serialization.load_pem_private_key", None)
    assert not run(keys=keys)["changed"]


def test_many_keys_that_are_there_take_no_time(run: Runner) -> None:
    content = dkim.generate_private_key("rsa", 2048, "pkcs8")
    domains = [f"d{n}.test" for n in range(1000)]
    for domain in domains:
        path = Path(run.template.format(domain=domain, selector="r1"))
        path.write_bytes(content)
        path.chmod(0o640)
    start = time.perf_counter()
    result = run.call(
        dkim_key.main,
        {"domains": domains, "selectors": [SELECTORS[0]], "path_template": run.template},
    )
    assert not result["changed"]
    assert time.perf_counter() - start < 10  # 41 s if each key were loaded


# dkim_key_info


def test_info(written: Runner) -> None:
    made = {key["name"]: key for key in written()["dkim_keys"]}
    path = Path(written.template.format(domain="second.test", selector="r9"))
    path.write_bytes(written.content("r1"))
    os.utime(path, (0, time.time() - 200 * 86400 - 60))
    found = written.info()
    assert not found["changed"]
    assert [key["name"] for key in found["dkim_keys"]] == [
        "e1._domainkey.example.test",
        "r1._domainkey.example.test",
        "r9._domainkey.second.test",
    ]
    assert [key["age_days"] for key in found["dkim_keys"]] == [0, 0, 200]
    for key in found["dkim_keys"][:2]:
        for item in ("txt", "strings", "fingerprint_sha256", "type", "bits", "path"):
            assert key[item] == made[key["name"]][item]
    (shared,) = found["shared"]
    assert shared["paths"] == [made["r1._domainkey.example.test"]["path"], str(path)]


def test_info_by_pattern(written: Runner) -> None:
    (key,) = written.info(paths=[f"{written.directory}/*.e1.key"], path_template=None)["dkim_keys"]
    assert (key["domain"], key["selector"], key["name"]) == (None, None, None)
    assert key["format"] == "ed25519_seed"


def test_info_tells_what_it_cannot_read_and_what_it_can(written: Runner) -> None:
    path = Path(written.template.format(domain="a.test", selector="r1"))
    path.write_text("my poems\n")
    result = written.info()
    assert result["failed"]
    assert [fault.split(":")[0] for fault in result["faults"]] == [str(path)]
    assert len(result["dkim_keys"]) == 2
