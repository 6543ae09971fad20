#!/bin/sh
# compile.sh FOLDER ...: byte code for the default Python of the build stage, the same from every build.
#
# Files that are no Python 3.11 (templates, other versions' code) are left as they are.
set -eu
PYTHONHASHSEED=0 python -m compileall -q -j 1 --invalidation-mode unchecked-hash "$@" >/dev/null 2>&1 || true
chmod -R a+rX,go-w "$@"
