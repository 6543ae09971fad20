"""Where this installation keeps things: one frozen value read from the environment.

| variable | default | meaning |
|---|---|---|
| REFIT_REPOSITORY | the folder above this package | code, locks, specs |
| REFIT_HOME | <repository>/.refit | what the embedded runtime makes |
| REFIT_ENVS | <home>/envs | the environments' venvs |
| REFIT_WORKSPACE | <home>/workspace | datasets, runs, releases |
| REFIT_PIPELINES | <repository>/specs/pipelines | the pipeline files |
| REFIT_CLUSTERS | <repository>/specs/clusters | the cluster profiles |
| REFIT_SPECS | none | folders of spec files that pipeline files may name beside their own folder's, separated by ":" |
| REFIT_DATA_ROOTS | <home>/data | folders below which data may lie, separated by ":" |
| REFIT_ALLOWED_HOSTS | none | hosts allowed for remote data though private or plain http (refit/hosts.py) |
| REFIT_CA_FILE | the system's | certificates (PEM) of an own authority, trusted for remote data beside the system's |
| REFIT_TRITON_URL | the profile's | Triton's HTTP address, for the local runtime |
| REFIT_MODEL_REPOSITORY | the profile's | Triton's model repository, for the local runtime |
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from refit.data.source import Kind, Source, parse
from refit.hosts import NOTHING, Allowed


class ConfigError(ValueError):
    """A setting of this installation that cannot work; the message says which and what to do."""


@dataclass(frozen=True)
class Settings:
    repository: Path
    home: Path
    envs: Path
    workspace: Path
    pipelines: Path
    clusters: Path
    data_roots: tuple[Path, ...]
    spec_roots: tuple[Path, ...] = ()
    triton_url: str | None = None
    model_repository: Path | None = None
    allowed_hosts: Allowed = NOTHING
    ca_file: Path | None = None

    @staticmethod
    def from_env(env: Mapping[str, str] | None = None) -> Settings:
        """Read the environment; relative paths are taken from the current folder. Raises ConfigError."""
        e = os.environ if env is None else env
        repository = Path(e.get("REFIT_REPOSITORY") or Path(__file__).resolve().parent.parent)

        def path(name: str, default: Path) -> Path:
            value = Path(os.path.abspath(e.get(name) or default))
            # The runner writes paths into spec files: these characters would change their meaning there.
            if any(c in str(value) for c in "'\"\n\\{}"):
                raise ConfigError(f"{name}={value}: quotes, braces, backslashes and line breaks cannot be in this path")
            return value

        home = path("REFIT_HOME", repository / ".refit")
        roots = [r for r in (e.get("REFIT_DATA_ROOTS") or "").split(":") if r] or [str(home / "data")]
        models = e.get("REFIT_MODEL_REPOSITORY")
        authority = e.get("REFIT_CA_FILE")
        try:
            allowed = Allowed.read(e.get("REFIT_ALLOWED_HOSTS") or "")
        except ValueError as exc:
            raise ConfigError(f"REFIT_ALLOWED_HOSTS: {exc}") from None
        return Settings(
            repository=repository,
            home=home,
            envs=path("REFIT_ENVS", home / "envs"),
            workspace=path("REFIT_WORKSPACE", home / "workspace"),
            pipelines=path("REFIT_PIPELINES", repository / "specs" / "pipelines"),
            clusters=path("REFIT_CLUSTERS", repository / "specs" / "clusters"),
            data_roots=tuple(Path(os.path.abspath(r)) for r in roots),
            spec_roots=tuple(Path(os.path.abspath(r)) for r in (e.get("REFIT_SPECS") or "").split(":") if r),
            triton_url=e.get("REFIT_TRITON_URL") or None,
            model_repository=Path(os.path.abspath(models)) if models else None,
            allowed_hosts=allowed,
            ca_file=Path(os.path.abspath(authority)) if authority else None,
        )

    def source(self, text: str, key: str = "dataset.source", *, single: bool = False) -> Source:
        """What a pipeline's `dataset.source` means here (or another key's value, where it is one file: `single`); of a
        folder or a .dvc file, `text` is the absolute path.

        Raises ConfigError for what this installation does not allow.
        """
        try:
            source = parse(text, single=single)
        except ValueError as exc:
            raise ConfigError(f"{key}: {exc}") from None
        if source.kind in (Kind.FOLDER, Kind.DVC):
            return Source(source.kind, str(self.data_path(text, key, single=single)))
        if source.kind is Kind.WEB and text.startswith("http://") and not self.allowed_hosts.plain(text):
            raise ConfigError(
                f"{key} {text!r}: plain http: anyone on the way can change what comes; use https, or allow "
                "the host by name (REFIT_ALLOWED_HOSTS=http://HOST; allowed_hosts of the cluster profile for pods)"
            )
        return source

    def data_path(self, source: str, key: str = "dataset.source", *, single: bool = False) -> Path:
        """The folder that a pipeline's `dataset.source` means (or, with `single`, the file of another key).

        A relative source lies below the first data root. Raises ConfigError where it would be outside every root,
        links followed.
        """
        path = Path(os.path.abspath(self.data_roots[0] / source))
        real = Path(os.path.realpath(path))
        if not any(real.is_relative_to(os.path.realpath(root)) for root in self.data_roots):
            roots = [str(r) for r in self.data_roots]
            more = str(path.parent if single else path)
            what = "file" if single else "data"
            raise ConfigError(
                f"{key} {source!r} is outside the allowed data roots ({', '.join(roots)}); move or mount the {what} "
                f"there, or start with REFIT_DATA_ROOTS={':'.join([*roots, more])}"
                + ("" if single else " (`make run PIPELINE=...` does that for its own pipeline)")
            )
        return path

    def environment(self) -> dict[str, str]:
        """The variables that give a subprocess the same settings."""
        out = {
            "REFIT_REPOSITORY": str(self.repository),
            "REFIT_HOME": str(self.home),
            "REFIT_ENVS": str(self.envs),
            "REFIT_WORKSPACE": str(self.workspace),
            "REFIT_PIPELINES": str(self.pipelines),
            "REFIT_CLUSTERS": str(self.clusters),
            "REFIT_DATA_ROOTS": ":".join(str(r) for r in self.data_roots),
        }
        if self.triton_url:
            out["REFIT_TRITON_URL"] = self.triton_url
        if self.model_repository:
            out["REFIT_MODEL_REPOSITORY"] = str(self.model_repository)
        if self.allowed_hosts.entries:
            out["REFIT_ALLOWED_HOSTS"] = str(self.allowed_hosts)
        if self.spec_roots:
            out["REFIT_SPECS"] = ":".join(map(str, self.spec_roots))
        if self.ca_file:
            out["REFIT_CA_FILE"] = str(self.ca_file)
        return out
