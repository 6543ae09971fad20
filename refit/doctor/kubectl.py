"""kubectl as a subprocess: it knows every way of signing in that the administrator's KUBECONFIG may ask for."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from typing import Any


class KubectlError(RuntimeError):
    """kubectl is not there, or did not do what it was asked; the message is its own."""


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


class Kubectl:
    """kubectl in one namespace, with the account of the current context."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace

    def run(self, *words: str, stdin: str | None = None, seconds: float = 60) -> Done:
        """Run it; raises KubectlError only where it cannot be run at all."""
        try:
            done = subprocess.run(
                ["kubectl", "-n", self.namespace, *words],
                input=stdin,
                capture_output=True,
                text=True,
                timeout=seconds,
                check=False,
            )
        except FileNotFoundError:
            raise KubectlError(
                "kubectl is not on the PATH; get the version of your cluster by "
                "https://kubernetes.io/docs/tasks/tools/ and point KUBECONFIG at it"
            ) from None
        except subprocess.TimeoutExpired:
            raise KubectlError(f"kubectl {' '.join(words[:3])} gave no answer within {seconds:.0f} s") from None
        return Done(done.returncode, done.stdout, done.stderr.strip())

    def ask(self, *words: str) -> str:
        """Its standard output. Raises KubectlError where it fails."""
        done = self.run(*words)
        if done.code:
            raise KubectlError(done.err or f"kubectl {' '.join(words)} ended with {done.code}")
        return done.out

    def get(self, kind: str, name: str) -> Any | None:
        """One object, None where there is none. Raises KubectlError."""
        done = self.run("get", kind, name, "-o", "json")
        if done.code and "NotFound" in done.err:
            return None
        if done.code:
            raise KubectlError(done.err)
        return json.loads(done.out)

    def all(self, kind: str, *words: str) -> list[Any]:
        """The objects of a kind. Raises KubectlError."""
        return list(json.loads(self.ask("get", kind, *words, "-o", "json"))["items"])
