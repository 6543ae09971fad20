"""The old pipeline's DVC block as a script beside the pipeline file: `pull` before a run, `push` after a release.

A script, not a stage: the data must lie in the inbox before a run can begin (its arrival starts one), and git's and
the storage's logins belong to whoever runs it (cron, CI), not to Refit.
"""

from __future__ import annotations

import shlex

from refit.migrate.fetch import place
from refit.migrate.kubeflow import Dvc

MARKER = "_SUCCESS"


def script(dvc: Dvc, name: str, source: str) -> str:
    """The text of dvc.sh. `source`: dataset.source of the pipeline."""
    remotes = "\n".join(
        f"#   dvc remote add --local {shlex.quote(what)} {shlex.quote(f'azure://{_word(container)}')}"
        for what, container in dvc.containers
    )
    found = (
        f'at=$(git -C "$repo" log --fixed-strings --grep={shlex.quote(dvc.checkout_msg)} -n 1 --format=%H '
        "refs/remotes/origin/HEAD)\n"
        '  [ -n "$at" ] || fail "no commit has the message that the old file names"'
        if dvc.checkout_msg
        else "at=refs/remotes/origin/HEAD   # commit_checkout_msg: latest"
    )
    return f"""#!/bin/sh
# Written by `refit import` from dvc_specs. Needs git and dvc, and their logins: `git credential`, and the storage's
# own (AZURE_STORAGE_ACCOUNT with AZURE_STORAGE_KEY or AZURE_STORAGE_SAS_TOKEN) in the environment, never in here.
#
#   dvc.sh pull          before a run: the data of the repository into the inbox; its marker comes last
#   dvc.sh push MODEL    after a release: a model's folder into the repository, committed and pushed
#
# INBOX: the folder that {name}.yaml calls {_comment(source)}. Where dvc has no remote yet:
{remotes or "#   dvc remote add --local data URL"}
set -eu
remote={shlex.quote(place(dvc.git_repo))}
data=${{DATA:-data}}        # the folder of the repository that holds images and labels
repo=${{REPO:-$HOME/.cache/refit-dvc/{shlex.quote(name)}}}

fail() {{ echo "dvc.sh: $*" >&2; exit 1; }}

checkout() {{
  [ -d "$repo/.git" ] || git clone -- "$remote" "$repo"
  git -C "$repo" fetch --prune origin
  git -C "$repo" remote set-head origin --auto
}}

pull() {{
  inbox=${{INBOX:?the folder of the inbox that the pipeline reads}}
  checkout
  {found}
  git -C "$repo" checkout --detach "$at"
  (cd "$repo" && dvc pull -- "$data")
  [ -d "$repo/$data" ] || fail "$data is no folder of the repository; set DATA"
  mkdir -p "$inbox"
  rm -f "$inbox/{MARKER}"
  cp -R "$repo/$data/." "$inbox/"
  touch "$inbox/{MARKER}"
}}

push() {{
  [ -d "$1" ] || fail "$1 is no folder"
  checkout
  branch=$(git -C "$repo" symbolic-ref --short refs/remotes/origin/HEAD)
  git -C "$repo" checkout -B "${{branch#origin/}}" "$branch"
  mkdir -p "$repo/models"
  rm -rf "$repo/models/$(basename "$1")"
  cp -R "$1" "$repo/models/"
  (cd "$repo" && dvc add -- "models/$(basename "$1")" && dvc push)
  git -C "$repo" add -A models
  git -C "$repo"{_author(dvc.git_user)} commit -m {shlex.quote(dvc.commit_msg or f"A new model of {name}")}
  git -C "$repo" push origin "${{branch#origin/}}"
}}

case "${{1:-}}" in
  pull) pull ;;
  push) [ $# -eq 2 ] || fail "push needs the model's folder"; push "$2" ;;
  *) fail "use dvc.sh pull, or dvc.sh push MODEL" ;;
esac
"""


def _author(user: str) -> str:
    return f" -c user.name={shlex.quote(user)}" if user else ""


def _word(text: str) -> str:
    return "".join(text.split())


def _comment(text: str) -> str:
    return " ".join(text.split())
