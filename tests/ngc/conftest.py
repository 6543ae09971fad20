from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("simplejpeg", reason="runs in the tools environment only")

from tests.ngc.server import KEY, MODEL, Ngc, serve, zipped

WEIGHTS = bytes(range(256)) * 2000


@pytest.fixture
def ngc(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ngc]:
    """NGC with a few models, and the environment of a stage that has a key."""
    versions = {
        "resnet18": zipped({"pretrained_detectnet_v2_vresnet18/resnet18.hdf5": WEIGHTS, "README.md": b"read me"}),
        "resnet34": zipped({"resnet34.hdf5": WEIGHTS[::-1]}),
    }
    others = (
        "nvidia/tao/pretrained_object_detection",
        "nvidia/tao/peoplenet",
        "nvidia/clara/tao_like",
        "acme/cv/plates",
    )
    made = Ngc(models={MODEL: versions, **{p: {"v1.0": zipped({"model.pth": p.encode()})} for p in others}})
    with serve(made):
        monkeypatch.setenv("REFIT_NGC_URL", made.url)
        monkeypatch.delenv("REFIT_NGC_AUTH_URL", raising=False)
        monkeypatch.delenv("REFIT_SECRET_NGC_API_KEY", raising=False)
        monkeypatch.setenv("NGC_API_KEY", KEY)
        monkeypatch.setattr("refit.ngc.client.time.sleep", lambda seconds: None)
        yield made
