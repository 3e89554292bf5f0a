# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) 2026, hikyaku.mail contributors
"""Run `ansible-test sanity` on the collection as users get it: built, and installed from the file.

ansible-test gets pip for its virtual environments from a server of its own; here it comes from the
package index that pip is configured for. Everything stays below .cache.
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
INSTALLED = CACHE / "ansible_collections" / "hikyaku" / "mail"

# What ansible-test runs as its bootstrap script: pip, from the wheel, installing the rest.
BOOTSTRAP = """\
import runpy, sys
sys.path.insert(0, {wheel!r})
options = [option for option in sys.argv[1:] if option not in ("--no-setuptools", "--no-wheel")]
sys.argv = ["pip", "install", *options]
runpy.run_module("pip", run_name="__main__")
"""


def install_collection() -> None:
    shutil.rmtree(CACHE / "ansible_collections", ignore_errors=True)
    galaxy = ["ansible-galaxy", "collection"]
    build = [*galaxy, "build", "--force", "--output-path", str(CACHE), str(ROOT)]
    subprocess.run(build, check=True)
    [artifact] = CACHE.glob("hikyaku-mail-*.tar.gz")
    install = [*galaxy, "install", "--force", "--offline", "--collections-path", str(CACHE)]
    subprocess.run([*install, str(artifact)], check=True)
    subprocess.run(["git", "init", "--quiet"], cwd=INSTALLED, check=True)


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
    install_collection()
    provide_pip()
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    sanity = ["ansible-test", "sanity", "--color", "no", "--python", version]
    environment = {**os.environ, "HOME": str(CACHE)}
    return subprocess.run(sanity, cwd=INSTALLED, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
