"""What the download is told. The key is never among it: it comes from the environment (NGC_API_KEY)."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from refit.specs import Spec

URL = "https://api.ngc.nvidia.com"
AUTH_URL = "https://authn.nvidia.com"
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Model:
    """A version of a model: `nvidia/tao/pretrained_detectnet_v2:resnet18`; an organisation may have no teams."""

    org: str
    team: str
    name: str
    version: str

    @staticmethod
    def parse(text: str) -> Model:
        """Raises ValueError that says what to write."""
        path, colon, version = text.partition(":")
        parts = path.split("/")
        if not colon:
            raise ValueError(
                f"{text!r} names no version; write {text}:VERSION (`refit ngc list {parts[-1]} --versions`)"
            )
        if len(parts) not in (2, 3) or not all(_PART.fullmatch(p) for p in (*parts, version)):
            raise ValueError(f"{text!r} is no model; write ORG/TEAM/NAME:VERSION or ORG/NAME:VERSION")
        return Model(parts[0], parts[1] if len(parts) == 3 else "", parts[-1], version)

    @property
    def group(self) -> str:
        return f"{self.org}/{self.team}" if self.team else self.org

    def __str__(self) -> str:
        return f"{self.group}/{self.name}:{self.version}"


def check_url(url: str) -> str:
    """An address that a key may be sent to. Raises ValueError."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query or parts.fragment:
        raise ValueError(f"{url!r} is no address; write https://host or https://host/path")
    if parts.scheme == "http" and parts.hostname not in _LOOPBACK:
        raise ValueError(f"{url}: a key must not travel over http; write https")
    return url.rstrip("/")


def addresses(env: Mapping[str, str] = os.environ) -> tuple[str, str]:
    """NGC's API and its login, or the mirror that REFIT_NGC_URL and REFIT_NGC_AUTH_URL name. Raises ValueError."""
    url = env.get("REFIT_NGC_URL") or URL
    return check_url(url), check_url(env.get("REFIT_NGC_AUTH_URL") or (AUTH_URL if url == URL else url))


class DownloadSpec(Spec):
    """Either `model` and `cache` (NGC), or `path` (no network)."""

    model: str | None = Field(
        None, description="ORG/TEAM/NAME:VERSION, e.g. nvidia/tao/pretrained_detectnet_v2:resnet18"
    )
    path: Path | None = Field(
        None, description="in place of NGC: a file, a .zip as NGC gives it, or a folder; absolute, as the stage sees it"
    )
    file: str | None = Field(
        None, min_length=1, description="which file of the version: a glob on its path or its name; null: its only one"
    )
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$", description="of that file; another one is refused")
    cache: Path | None = Field(None, description="folder that keeps what was downloaded")
    timeout_seconds: float = Field(60, gt=0, le=3600, description="without a byte from NGC")

    @field_validator("model")
    @classmethod
    def _model(cls, value: str | None) -> str | None:
        return value and str(Model.parse(value))

    @model_validator(mode="after")
    def _one(self) -> DownloadSpec:
        if (self.model is None) == (self.path is None):
            raise ValueError("name either model (from NGC) or path (no network)")
        if self.model and not self.cache:
            raise ValueError("model needs cache: the folder that keeps what was downloaded")
        if self.path and not self.path.is_absolute():
            raise ValueError(f"path {str(self.path)!r} must be absolute")
        return self
