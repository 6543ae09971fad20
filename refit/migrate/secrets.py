"""Keys in plain text: taken out of every text before anything else looks at it.

What the rest of the package sees has a mark in place of each value, so that no file, message or error can hold one.
Only a download may have the value back (`Vault.reveal`: the signature in a URL that the user gave).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["encryption", "ngc", "other"]

_QUOTED = r"""(?:"(?:[^"\\\n]|\\.)*"?|'[^'\n]*'?)"""
# Without quotes: up to a space, less what closes the text around it; any sign may be in it.
_BARE = r"""(?:[^\s"'{\[(<#][^\s"']*?(?=[,;}\])"']*(?:\s|$))|[^\s"'{\[(<#]\S*)"""
_VALUE = rf"(?:{_QUOTED}|{_BARE})"
_WORDS = (
    rf"(?:{_QUOTED}|{_BARE}(?:[ \t]+[^\s#:=\"']+)*(?=[ \t]*(?:#|\n|$))|{_BARE})"  # YAML's plain text may have several
)
_KEYS = (
    r"(?i:[a-z0-9_-]*api[_-]?key|[a-z0-9_]*(?:enc|encryption|account|access|secret)_key|tlt-model-key|"
    r"(?:tlt|tao|ngc)_key|[a-z0-9_]*(?:token|secret|password|passwd)|[a-z0-9_]*connection_string)|"
    r"KEY|[A-Z0-9_]+_KEY"  # in capitals only: a prototxt's maps are made of `key:`
)
# name: value, name = value, "name": "value", also with YAML's block scalars.
_NAMED = re.compile(
    rf"""(?<![\w.$\-])(?P<quote>["']?)(?P<name>{_KEYS})(?P=quote)"""
    r"(?P<gap>[ \t]*[:=][ \t]*(?:[>|][+-]?[ \t]*\n[ \t]+|[\[{(][ \t]*)?)"
    rf"(?P<value>{_WORDS})"
)
_OPTION = re.compile(rf"(?<!\S)(?P<name>-k|--key|--api[_-]key|--encryption_key|-ek)(?P<gap>[ =]+)(?P<value>{_VALUE})")
# An entry of a mounts file's Envs, in either order.
_ENV = re.compile(
    r'"variable"\s*:\s*"(?P<name>[^"]*(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD)[^"]*)"(?P<gap>\s*,\s*"value"\s*:\s*)'
    r'(?P<value>"(?:[^"\\]|\\.)*")',
    re.IGNORECASE,
)
_ENV_TURNED = re.compile(
    r'"value"\s*:\s*(?P<value>"(?:[^"\\]|\\.)*")'
    r'(?:\s*,\s*"variable"\s*:\s*"(?P<name>[^"]*(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD)[^"]*)")',
    re.IGNORECASE,
)
_YAML_KEY = re.compile(rf"^(?P<name>key)(?P<gap>[ \t]*:[ \t]*)(?P<value>{_VALUE})", re.MULTILINE)  # TAO 4's TF2 specs
_NAKED = re.compile(r"\bnvapi-[A-Za-z0-9_-]{8,}|\bAKIA[0-9A-Z]{16}\b|\bgh[pousr]_[A-Za-z0-9]{16,}|\bglpat-[\w-]{16,}")
_LOGIN = re.compile(r"(?<=://)(?P<value>[^/\s@\"'?#]+)(?=@)")
_SIGNATURE = re.compile(
    r"(?P<gap>[?&](?:sig|signature|token|access_token|key|x-amz-signature|x-amz-credential|x-goog-signature)=)"
    r"(?P<value>[^&\s\"'#]+)",
    re.IGNORECASE,
)
_MARK = re.compile(r"REFIT_TOOK_THIS_OUT_(\d+)_")
_REFERENCE = re.compile(r"^(?:\$|\{secret:|<|~$|null$|none$|true$|false$|REFIT_TOOK_THIS_OUT)", re.IGNORECASE)
_LONG = 8  # characters; a shorter value may be an ordinary word elsewhere


@dataclass(frozen=True)
class Found:
    """A key that stood in plain text. `mark` stands there now; equal values have equal marks."""

    file: str
    line: int
    name: str
    kind: Kind
    mark: str


@dataclass
class Vault:
    """The values, and where they were."""

    found: list[Found] = field(default_factory=list)
    _marks: dict[str, str] = field(default_factory=dict, repr=False)

    def take(self, text: str, file: str, *, plain_key: bool = False) -> str:
        """The text with a mark in place of each secret; lines stay lines. `plain_key`: a line's `key:` is one too."""
        for pattern in (_ENV, _ENV_TURNED, _NAMED, _OPTION, *([_YAML_KEY] if plain_key else []), _LOGIN, _SIGNATURE):
            text = pattern.sub(self._replacer(text, file), text)
        text = _NAKED.sub(lambda m: self._mark(m.group(), file, _line(text, m.start()), "key", "ngc"), text)
        return self.hide(text)

    def hide(self, text: str) -> str:
        """The text without the values that are known by now."""
        for value, mark in self._marks.items():
            if len(value) >= _LONG:
                text = text.replace(value, mark)
        return text

    def reveal(self, text: str) -> str:
        """The text with the values back in: for a request to where the user's own URL leads."""
        by_mark = {mark: value for value, mark in self._marks.items()}
        return _MARK.sub(lambda m: by_mark.get(m.group(), m.group()), text)

    def kinds(self) -> set[Kind]:
        return {f.kind for f in self.found}

    def _replacer(self, text: str, file: str) -> Callable[[re.Match[str]], str]:
        def replace(match: re.Match[str]) -> str:
            parts = match.groupdict()
            name, written = parts.get("name") or "login in a URL", match["value"]
            quote = written[0] if written[0] in "\"'" else ""
            value = written.strip("\"'")
            if not value or _REFERENCE.match(value):
                return match.group()
            if match.re is _LOGIN and value == "git":
                return match.group()  # ssh://git@host: the name of a service, no login
            if match.re is _SIGNATURE:
                name = "signature in a URL"
            mark = self._mark(value, file, _line(text, match.start("value")), name, _kind(name))
            start, end = match.start("value") - match.start(), match.end("value") - match.start()
            whole = match.group()
            return f"{whole[:start]}{quote}{mark}{quote}{whole[end:]}"

        return replace

    def _mark(self, value: str, file: str, line: int, name: str, kind: Kind) -> str:
        mark = self._marks.setdefault(value, f"REFIT_TOOK_THIS_OUT_{len(self._marks) + 1}_")
        self.found.append(Found(file, line, name, kind, mark))
        return mark


def marked(value: object) -> bool:
    """Whether a secret stood here."""
    return isinstance(value, str) and bool(_MARK.search(value))


def shown(text: str) -> str:
    """A text for people: the marks as stars."""
    return _MARK.sub("***", text)


def _line(text: str, at: int) -> int:
    return text.count("\n", 0, at) + 1


def _kind(name: str) -> Kind:
    low = name.lower()
    if "ngc" in low or re.search(r"api[_-]?key", low):
        return "ngc"
    if low in ("key", "-k", "--key", "-ek", "tlt-model-key", "tlt_key", "tao_key") or "enc" in low:
        return "encryption"
    return "other"
