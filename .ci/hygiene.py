"""`make lint`: no committed file may name a package registry, a path of the machine it was written on, or a secret.

Registries belong into the user's pip or uv configuration (a mirror must be usable), paths into variables, and secrets
nowhere. Looks at what git tracks and at new files that it does not ignore.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Written in pieces, so that this file does not find itself.
HOSTS = (
    r"pypi\.(?:python\.)?org", r"python" + r"hosted\.org", r"download\.pytorch" + r"\.org", r"anaconda" + r"\.org",
    r"registry\.npmjs" + r"\.org", r"deb\.debian" + r"\.org",
    r"archive\.ubuntu" + r"\.com", r"proxy\.golang" + r"\.org",
)  # fmt: skip
SECRETS = (r"nvapi-[A-Za-z0-9_-]{20,}", r"-----BEGIN [A-Z ]*PRIVATE" + r" KEY-----", r"\bAKIA[0-9A-Z]{16}\b")


def patterns(env: Mapping[str, str]) -> dict[str, re.Pattern[str]]:
    """What must not be found, by what it is."""
    paths = [str(ROOT), *(env.get("PIP_FIND_LINKS") or "").split(), env.get("REFIT_HOME", "")]
    home = env.get("HOME", "")
    if home not in ("", "/", "/root"):  # /root is the home in containers, and means nothing
        paths.append(home)
    found = {
        "a package registry's host": "|".join(HOSTS),
        "a secret": "|".join(SECRETS),
        "a path of this machine": "|".join(re.escape(p) + r"(?![\w-])" for p in paths if p.startswith("/")),
    }
    return {what: re.compile(text) for what, text in found.items() if text}


def files() -> Iterator[Path]:
    """Text files of the repository, new ones included."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in sorted(set(listed.stdout.decode("utf-8", "surrogateescape").split("\0"))):
        path = ROOT / name
        if name and path.is_file() and not path.is_symlink() and b"\0" not in path.open("rb").read(8192):
            yield path


def main() -> int:
    looked_for, count, bad = patterns(os.environ), 0, 0
    for path in files():
        count += 1
        for number, line in enumerate(path.read_text("utf-8", "replace").splitlines(), start=1):
            for what, pattern in looked_for.items():
                match = pattern.search(line)
                if match:
                    bad += 1
                    print(f"{path.relative_to(ROOT)}:{number}: {what}: {match.group()[:60]}")
    print(f"hygiene: {count} files, {bad} findings")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
