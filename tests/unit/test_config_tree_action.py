# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) 2026, hikyaku.mail contributors
"""What config_tree does on the controller: find, render, complain, send."""

from __future__ import annotations

import typing as t
from pathlib import Path
from types import SimpleNamespace

import pytest
from ansible.errors import AnsibleActionFail
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar
from ansible_collections.hikyaku.mail.plugins.action.config_tree import ActionModule
from ansible_collections.hikyaku.mail.plugins.module_utils.config_tree_task import unpack

Run = t.Callable[..., tuple[dict[str, t.Any], dict[str, bytes]]]


@pytest.fixture
def role(tmp_path: Path) -> Path:
    (tmp_path / "templates/app/sub").mkdir(parents=True)
    return tmp_path


@pytest.fixture
def run(role: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the action in a role; what it sends, and the contents in there."""

    def run(**variables: t.Any) -> tuple[dict[str, t.Any], dict[str, bytes]]:
        arguments = variables.pop("arguments", {})
        trees = variables.pop("trees", [{"src": "app", "dest": "/etc/app"}])
        loader = DataLoader()
        task = SimpleNamespace(
            args={"name": "app", "trees": trees, **arguments},
            action="hikyaku.mail.config_tree",
            async_val=0,
            check_mode=False,
            diff=False,
            get_search_path=lambda: [str(role)],
        )
        sent: list[dict[str, t.Any]] = []
        shell = SimpleNamespace(tmpdir=None)
        action = ActionModule(
            task=task,
            connection=SimpleNamespace(_shell=shell),
            play_context=SimpleNamespace(check_mode=False),
            loader=loader,
            templar=Templar(loader, variables),
            shared_loader_obj=None,
        )
        monkeypatch.setattr(
            action, "_execute_module", lambda **call: sent.append(call) or {"changed": True}
        )
        assert action.run(task_vars=variables) == {"changed": True}
        assert len(sent) == 1, "one round trip"
        assert sent[0]["module_name"] == "hikyaku.mail.config_tree"
        return sent[0]["module_args"], unpack(sent[0]["module_args"]["content"])[1]

    return run


def test_a_template_means_what_it_means_to_ansible_builtin_template(role: Path, run: Run) -> None:
    (role / "templates/app/main.j2").write_text(
        "# {{ ansible_managed }}, {{ template_destpath }}\n"
        "{% for x in xs %}\n  {{ x }}\\n\n{% endfor %}\nlast = {{ last }}\n\n"
    )
    (role / "templates/app/native.j2").write_text("{{ xs }}")
    (role / "templates/app/nothing.j2").write_text("{{ none }}")
    _arguments, contents = run(xs=["a", "b"], last="{{ untrusted }}", none=None)
    assert contents == {
        "/etc/app/main": b"# Ansible managed, /etc/app/main\n"
        b"  a\\n\n  b\\n\nlast = {{ untrusted }}\n\n",
        "/etc/app/native": b"['a', 'b']",
        "/etc/app/nothing": b"",
    }


def test_other_files_are_sent_as_they_are(role: Path, run: Run) -> None:
    (role / "templates/app/sub/image").write_bytes(b"\0\xff{{ x }}")
    arguments, contents = run()
    assert contents == {"/etc/app/sub/image": b"\0\xff{{ x }}"}
    assert set(arguments) == {"name", "trees", "content"}


def test_templates_may_include_others_of_the_role(role: Path, run: Run) -> None:
    (role / "templates/macros.j2").write_text("{% macro m(x) %}<{{ x }}>{% endmacro %}")
    (role / "templates/app/a.j2").write_text("{% import 'macros.j2' as l %}{{ l.m(1) }}\n")
    assert run()[1] == {"/etc/app/a": b"<1>\n"}


def test_every_template_error_is_reported_with_its_file_and_variable(role: Path, run: Run) -> None:
    (role / "templates/app/a.j2").write_text("{{ absent_one }}")
    (role / "templates/app/b.j2").write_text("{{ present.absent_two }}")
    (role / "templates/app/c.j2").write_text("{% if %}")
    (role / "templates/app/d.j2").write_text("{{ absent_three }}")
    with pytest.raises(AnsibleActionFail) as caught:
        run(
            present={},
            trees=[
                {
                    "src": "app",
                    "dest": "/etc/app",
                    "files": [{"path": "d", "when": "false"}],
                }
            ],
        )
    message = str(caught.value)
    for words in ("app/a.j2: 'absent_one' is undefined", "b.j2: ", "absent_two", "c.j2: Syntax"):
        assert words in message
    assert "absent_three" not in message


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"content": "x"}, "content: set by the action plugin"),
        ({"trees": [{"src": "app", "to": "/x"}]}, "to"),
        ({"build": [{"argv": ["x", "{stage}"]}]}, "creates"),
        ({"trees": [{"src": "nowhere", "dest": "/x"}]}, "no directory 'nowhere' under templates/"),
        ({"trees": [{"src": "app/sub/file", "dest": "/x"}]}, "no directory 'app/sub/file'"),
    ],
)
def test_bad_parameters_are_refused(
    role: Path, run: Run, arguments: dict[str, t.Any], words: str
) -> None:
    (role / "templates/app/sub/file").write_text("")
    with pytest.raises(AnsibleActionFail, match=words):
        run(arguments=arguments)
