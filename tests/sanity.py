# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) 2026, hikyaku.mail contributors
"""Run `ansible-test sanity` on a copy of this checkout.

ansible-test insists on a directory ansible_collections/NAMESPACE/NAME without links, and gets pip
for its virtual environments from a server of its own. The copy and a pip from the package index
that pip is configured for replace both. Everything stays below .cache.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".cache" / "sanity"
COPY = CACHE / "ansible_collections" / "hikyaku" / "mail"

# What ansible-test runs as its bootstrap script: pip, from the wheel, installing the rest.
BOOTSTRAP = """\
import runpy, sys
sys.path.insert(0, {wheel!r})
options = [option for option in sys.argv[1:] if option not in ("--no-setuptools", "--no-wheel")]
sys.argv = ["pip", "install", *options]
runpy.run_module("pip", run_name="__main__")
"""


def copy_checkout() -> None:
    shutil.rmtree(CACHE / "ansible_collections", ignore_errors=True)
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, text=True, capture_output=True, check=True).stdout
    for name in names.splitlines():
        source = ROOT / name
        if source.is_file() and not name.startswith(".collections/"):
            (COPY / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, COPY / name)
    subprocess.run(["git", "init", "--quiet"], cwd=COPY, check=True)


def provide_pip() -> None:
    package = find_spec("ansible_test")
    assert package and package.origin
    requirements = Path(package.origin).parent / "_internal" / "python_requirements.py"
    found = re.search(r"^ +pip='([\d.]+)'", requirements.read_text(), re.MULTILINE)
    assert found, "this ansible-test names its pip in another way"
    version = found[1]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", f"pip=={version}"]
    subprocess.run([*pip, "--dest", str(CACHE)], check=True)
    cache = CACHE / ".ansible" / "test" / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    script = BOOTSTRAP.format(wheel=str(next(CACHE.glob(f"pip-{version}-*.whl"))))
    (cache / f"get_pip_{version.replace('.', '_')}.py").write_text(script)


def main() -> int:
    copy_checkout()
    provide_pip()
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    sanity = ["ansible-test", "sanity", "--color", "no", "--python", version]
    environment = {**os.environ, "HOME": str(CACHE)}
    return subprocess.run(sanity, cwd=COPY, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
