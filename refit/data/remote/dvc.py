"""What a .dvc file names, in its DVC remote.

A .dvc file is YAML with one `outs` entry: path, md5, of a folder `<md5>.dir`. In the remote an object lies at
`files/md5/<first two>/<rest>` (DVC 3, its entry says `hash: md5`) or `<first two>/<rest>` (DVC 2); the one of a folder
is a JSON list of {"md5", "relpath"} (DVC's documentation, "Structure of the cache directory"). Data is new when the
.dvc file names another hash: bring it by `git pull` of the repository that holds it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import yaml

from refit.data.manifest import MOST_BYTES, Named
from refit.data.remote.errors import Refused, Vanished
from refit.data.source import Source
from refit.data.tree import FileInfo, Tree, of_objects

if TYPE_CHECKING:
    from refit.data.remote.stores import Store

_MOST = 1 << 20  # bytes of a .dvc file
_MD5 = re.compile(r"^[0-9a-f]{32}(\.dir)?$")


class Dvc:
    """See `refit.data.remote.Remote`."""

    def __init__(self, source: Source, remote: Store) -> None:
        self._source, self._remote = source, remote
        self._beginning = ""  # of an object's place in the remote

    def tree(self) -> Tree | None:
        """The .dvc file's own entry; the remote is not asked."""
        found = self._out()
        if found is None:
            return None
        out, moment = found
        size = out.get("size")
        row = FileInfo(str(out["path"]), size if isinstance(size, int) else 0, moment, moment, str(out["md5"]))
        return of_objects(Path(self._source.text), [row])

    def files(self) -> tuple[Tree, Mapping[str, Named]]:
        found = self._out()
        if found is None:
            return Tree(Path(self._source.text)), {}
        out, moment = found
        digest, checked = str(out["md5"]), out.get("hash") == "md5"
        self._beginning = "files/md5/" if checked else ""
        whole = digest.endswith(".dir")
        rows = self._folder(digest) if whole else [(PurePosixPath(str(out["path"])).name, digest)]
        # DVC 2 hashed text files with their line ends changed: what comes cannot be compared with that.
        known = {path: Named(hash=md5) for path, md5 in rows} if checked else {}
        return of_objects(Path(), [FileInfo(path, 0, moment, moment, md5) for path, md5 in rows]), known

    def read(self, file: FileInfo, start: int) -> Iterator[bytes]:
        yield from self._remote.read(FileInfo(self._place(file.tag), file.size, 0, 0), start)

    def resumes(self, file: FileInfo) -> bool:
        return True  # an object's name is its hash: it never changes

    def whole(self, path: str, limit: int) -> bytes:
        raise Refused(
            f"{self._source}: dataset.arrival.manifest is not for .dvc files, which name their files themselves"
        )

    def _folder(self, digest: str) -> list[tuple[str, str]]:
        try:
            entries = json.loads(self._remote.whole(self._place(digest), MOST_BYTES))
            rows = [(str(e["relpath"]), str(e["md5"])) for e in entries]
        except Vanished:
            raise Refused(f"{self._source}: the remote has no {digest}; `dvc push` it, or check dvc_remote") from None
        except (ValueError, TypeError, KeyError):
            raise Refused(f"{self._source}: {digest} in the remote is no list of files") from None
        bad = next((md5 for _, md5 in rows if not _MD5.match(md5)), None)
        if bad is not None:
            raise Refused(f"{self._source}: {digest} in the remote names {bad[:40]!r}, which is no md5")
        return rows

    def _place(self, digest: str) -> str:
        return f"{self._beginning}{digest[:2]}/{digest[2:]}"

    def _out(self) -> tuple[dict[str, Any], int] | None:
        path = Path(self._source.text)
        try:
            status = path.stat()
            if status.st_size > _MOST:
                raise Refused(f"{path}: is no .dvc file: it has more than {_MOST >> 20} MiB")
            (out,) = yaml.safe_load(path.read_bytes())["outs"]
            if not _MD5.match(out["md5"]) or not isinstance(out["path"], str):
                raise ValueError
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise Refused(f"{path}: cannot be read: {exc.strerror}") from None
        except (yaml.YAMLError, ValueError, TypeError, KeyError, RecursionError):
            raise Refused(f"{path}: is no .dvc file with one entry in `outs` that has path and md5") from None
        return out, status.st_mtime_ns
