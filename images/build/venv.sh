#!/bin/sh
# venv.sh NAME [PACKAGE-PATH ...]: make /opt/refit/envs/NAME from /build/requirements.txt, for a build stage.
#
# - The lock names every package, so pip resolves nothing. Where packages come from is pip's configuration: a
#   pip.conf, or the build arguments PIP_INDEX_URL, PIP_EXTRA_INDEX_URL and PIP_FIND_LINKS.
# - The environment has no pip of its own, and what PACKAGE-PATH (below site-packages, globs) names is left out.
# - Byte code is made here and not by pip: without times in it, so that a build can be repeated bit by bit, and
#   because the images run on read-only file systems, where each start would compile again.
set -eu
env=/opt/refit/envs/$1
shift
python -m venv --without-pip "$env"
python -m pip --python "$env/bin/python" install --no-compile --no-deps --root-user-action=ignore \
    --disable-pip-version-check -r /build/requirements.txt
site=$("$env/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
rm -rf "$env"/bin/[Aa]ctivate*
for path in "$@"; do
    # The pattern is meant to be expanded here.
    rm -rf "$site"/$path
done
/bin/sh "$(dirname "$0")/compile.sh" "$site"
