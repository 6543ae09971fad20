"""`refit ngc list PATTERN`: what there is, by the names that a spec takes."""

from __future__ import annotations

import argparse
import json
import os
import re

from refit.command import BadSpec, StageError
from refit.config import Settings
from refit.ngc.spec import Model

GROUP = "nvidia/tao"


def add_list(parser: argparse.ArgumentParser) -> None:
    """The arguments of `refit ngc list`."""
    parser.add_argument("pattern", metavar="PATTERN", help="a word of the name, or a glob such as pretrained_*")
    parser.add_argument("--in", dest="group", default=GROUP, metavar="ORG[/TEAM]", help=f"default: {GROUP}")
    parser.add_argument("--versions", action="store_true", help="all of each model, not the latest only")
    parser.add_argument("--json", action="store_true")


def run_list(args: argparse.Namespace, settings: Settings) -> int:
    """Print the models; 0 also where there are none."""
    from refit.ngc.client import Client
    from refit.ngc.spec import addresses
    from refit.ngc.stage import key
    from refit.runtime.local import SecretError, secret

    if not re.fullmatch(r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)?", args.group):
        raise BadSpec(f"--in {args.group}: write ORG or ORG/TEAM")
    try:
        url, auth_url = addresses()
        client = Client(url, auth_url, key() or secret("NGC_API_KEY", settings.home))
    except (ValueError, SecretError) as exc:
        raise StageError(str(exc)) from None
    rows = []
    for found in client.search(args.group, args.pattern):
        versions = [(found.latest, 0)]
        if args.versions:
            *parents, name = found.path.split("/")
            model = Model(parents[0], "/".join(parents[1:]), name, found.latest)
            versions = [(v.name, v.bytes) for v in client.versions(model)]
        rows += [{"model": f"{found.path}:{v}", "title": found.title, "bytes": size or None} for v, size in versions]
    if args.json:
        print(json.dumps(rows, indent=1))
        return os.EX_OK
    width = max((len(str(r["model"])) for r in rows), default=0)
    for r in rows:
        size = f"{int(str(r['bytes'])) / 2**20:8.1f} MiB" if r["bytes"] else ""
        print(f"{r['model']!s:{width}}  {size}  {r['title']}".rstrip())
    if not rows:
        print(f"{args.group} has no model whose name fits {args.pattern!r}, or none that this key may see")
    return os.EX_OK
