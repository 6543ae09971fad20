"""The Models page in Airflow's own app: who sees what, every page, and what is wrong with names and files."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from tests.plugins import place, tree

RUN = "now"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("published")
    tree.write(made, pipelines=2, runs=6)
    shutil.copytree(made / "model-000", made / "hidden")
    tree.going_on(made, "model-001", "manual__now")
    (made / "half").mkdir()
    (made / "half" / "index.json").write_text('{"champion": {"version"')
    (made / "odd").mkdir()
    odd = {"champion": [1], "last": "x", "releases": {"a": 1}, "runs": [3, {"run": ["x"], "mAP50": "high"}]}
    (made / "odd" / "index.json").write_text(json.dumps(odd))
    (made.parent / "secret.html").write_text("not for you")
    os.symlink(made.parent / "secret.html", made / "model-000" / "runs" / "run-0001" / "data.html")
    os.symlink("../../hidden/runs/run-0001", made / "model-000" / "runs" / "linked")
    os.symlink("../hidden/runs", made / "half" / "runs")
    return made


@pytest.fixture(scope="module")
def client(root: Path) -> TestClient:
    made = place.app(root, ["model-000", "model-001", "half", "odd", "fresh", "asking"])  # of hidden there is no DAG
    place.start_run("retrain_model-001", "manual__now")
    place.start_run("retrain_asking", "manual__asks", asks="Is it good?")
    return TestClient(made, follow_redirects=True)


def headers(client: TestClient, user: str) -> dict[str, str]:
    token = client.post("/auth/token", json={"username": user, "password": user}).json()["access_token"]
    return {"Authorization": f"Bearer {token}", "Accept": "text/html"}


@pytest.fixture(scope="module")
def olga(client: TestClient) -> dict[str, str]:
    return headers(client, "olga")


PAGES = [
    "/models", "/api/models", "/models/model-000", "/api/models/model-000", "/progress/model-000",
    "/models/model-000/compare?run=run-0001&run=run-0002", "/published/model-000/runs/run-0001/report.html",
    f"/published/model-000/data/{tree.FINGERPRINT}.html", "/report/retrain_model-000/run-0001", "/of/retrain_model-000",
]  # fmt: skip


@pytest.mark.parametrize("page", PAGES)
def test_without_a_login_nothing_is_shown(client: TestClient, page: str) -> None:
    assert client.get(f"/refit{page}").status_code == 401


def test_a_person_without_a_login_is_told_where_to_log_in(client: TestClient) -> None:
    answer = client.get("/refit/models/model-000?run=run-0001", headers={"Accept": "text/html"})
    assert answer.status_code == 401
    assert 'href="/api/v2/auth/login?next=%2Frefit%2Fmodels%2Fmodel-000%3Frun%3Drun-0001"' in answer.text
    sent = client.get("/api/v2/auth/login?next=%2Frefit%2Fmodels%2Fmodel-000", follow_redirects=False)
    assert (sent.status_code, sent.headers["location"].rpartition("?")[2]) == (
        307,
        "next=%2Frefit%2Fmodels%2Fmodel-000",
    )


@pytest.mark.parametrize(
    ("page", "status", "said"),
    [
        ("/models/%3Cscript%3Ealert(1)%3C/script%3E", 404, "Not there"),  # with a slash: an address that no route has
        ("/published/model-000/..%2F..%2Fsecret.html", 404, "Not there"),
        ("/models?page=x", 422, "page: Input should be a valid integer"),
    ],
)
def test_what_no_page_has_is_told_on_a_page(
    client: TestClient, olga: dict[str, str], page: str, status: int, said: str
) -> None:
    answer = client.get(f"/refit{page}", headers=olga)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "text/html; charset=utf-8")
    assert said in answer.text
    assert "alert(1)" not in answer.text
    assert "detail" in client.get(f"/refit{page}", headers={**olga, "Accept": "application/json"}).json()


def test_the_list(client: TestClient, olga: dict[str, str]) -> None:
    answer = client.get("/refit/models", headers=olga)
    assert answer.status_code == 200
    assert "script-src 'self'" in answer.headers["content-security-policy"]
    text = answer.text
    assert 'href="/refit/models/model-000"' in text
    assert "hidden" not in text  # whose DAG the user cannot read
    assert "epoch 3 of 12, loss 0.5, 1 min 5 s left, mAP@0.5 0.612" in text
    assert text.index("asking") < text.index("model-001") < text.index("model-000")  # a person is asked; what goes on
    assert "waits for a person" in text
    assert 'href="/refit/models/fresh"' in text  # whose first run has not ended
    asks = client.get("/refit/models?show=asks", headers=olga).text
    assert "models/asking" in asks
    assert "models/model-001" not in asks
    only = client.get("/refit/models?q=001&show=running", headers=olga).text
    assert "model-001" in only
    assert "model-000" not in only
    assert "No pipeline fits." in client.get("/refit/models?q=%3Cscript%3E&page=99", headers=olga).text


def test_the_list_for_programs(client: TestClient, olga: dict[str, str]) -> None:
    found = {m["pipeline"]: m for m in client.get("/refit/api/models", headers=olga).json()["models"]}
    assert {"asking", "fresh", "half", "model-000", "model-001", "odd"} <= found.keys()  # the database is also others'
    assert "hidden" not in found
    assert [name for name, m in found.items() if not m["readable"]] == ["half"]
    assert found["model-000"]["champion"]["version"] == 6
    assert found["model-001"]["going_on"] == [{"run_id": "manual__now", "state": "running"}]


def test_one_model(client: TestClient, olga: dict[str, str]) -> None:
    text = client.get("/refit/models/model-000", headers=olga).text
    assert "olga: seen the pictures &lt;script&gt;" in text
    for said in ("version 6 serves", "Models side by side", "144,231", "Precision over recall", "Give it"):
        assert (said in text) == (said != "Give it")
    assert "mAP@0.5 by version" in text
    assert "replaced by version 2</td>" in text  # and not by which run, which its own row tells
    assert "model-000/runs/run-0006/25-edge/out/model-000-tflite.zip" in text
    assert re.search(r'href="/refit/models/model-000\?run=run-0001">train: the champion, version 1 of run', text)
    assert text.count("<script") == 1  # the page's own
    assert "&lt;script&gt;alert(1)" in text
    assert client.get("/refit/models/model-000?run=run-0005", headers=olga).text.count("Give it more memory.") == 1


def test_two_compared(client: TestClient, olga: dict[str, str]) -> None:
    text = client.get("/refit/models/model-000/compare?run=run-0002&run=run-0001", headers=olga).text
    change = tree.score(2) - tree.score(1)
    assert f"+{change:.3f}" in text  # the older one is on the left, whatever the order was
    assert "+seed: 2" in text
    assert text.count("<script") == 1
    assert cells(text, "Seconds of GPUs") == ["360.0", "720.0", "+360.0"]
    assert cells(text, "Cost EUR") == ["2.10", "4.20", "+2.10"]
    assert cells(text, "TFLite: mAP@0.5") == [f"{tree.score(n) - 0.004:.3f}" for n in (1, 2)] + [f"{change:+.3f}"]
    assert cells(text, "TFLite: bytes") == ["583,375", "583,374", "-1"]


def test_what_one_of_two_lacks_is_left_empty(client: TestClient, olga: dict[str, str], root: Path) -> None:
    """A run without bundles, of a cluster with prices in another currency."""
    path = root / "model-000" / "runs" / "run-0004" / "report.json"
    report = json.loads(path.read_text())
    report["edge"], report["cost"]["money"]["currency"] = [], "USD"
    path.write_text(json.dumps(report))
    text = client.get("/refit/models/model-000/compare?run=run-0001&run=run-0004", headers=olga).text
    assert cells(text, "Cost") == ["2.10 EUR", "8.40 USD", "other"]
    assert cells(text, "TFLite: bytes") == ["583,375", "", ""]


def cells(page: str, name: str) -> list[str]:
    """The cells of a table's row without their markup."""
    row = re.search(rf'<th scope="row">{re.escape(name)}</th>(.*?)</tr>', page)
    assert row, f"no row {name!r}"
    return [re.sub(r"<[^>]*>", "", cell) for cell in re.findall(r"<td.*?>(.*?)</td>", row[1])]


def test_a_viewer_sees_and_cannot_press(client: TestClient, olga: dict[str, str]) -> None:
    eve = headers(client, "eve")
    text = client.get("/refit/models/model-000", headers=eve).text
    assert 'data-dialog="retrain" disabled="disabled"' in text
    assert "<dialog" not in text
    assert 'data-dialog="retrain" disabled' not in client.get("/refit/models/model-000", headers=olga).text
    run = client.post("/api/v2/dags/retrain_model-000/dagRuns", headers=eve, json={"logical_date": None, "conf": {}})
    assert run.status_code == 403


@pytest.mark.parametrize("page", PAGES[2:])
def test_a_pipeline_whose_dag_is_not_yours_is_as_one_that_is_not_there(
    client: TestClient, olga: dict[str, str], page: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager

    asked = SimpleAuthManager.is_authorized_dag

    def mine(self: SimpleAuthManager, *, details: object = None, **more: object) -> bool:
        return getattr(details, "id", None) != "retrain_model-000" and asked(self, details=details, **more)

    monkeypatch.setattr(SimpleAuthManager, "is_authorized_dag", mine)
    assert client.get(f"/refit{page}", headers=olga).status_code == 404
    assert "model-000" not in client.get("/refit/models", headers=olga).text


def test_reports_are_in_a_sandbox(client: TestClient, olga: dict[str, str]) -> None:
    whole = client.get("/refit/published/model-000/runs/run-0001/report.html", headers=olga)
    data = client.get(f"/refit/published/model-000/data/{tree.FINGERPRINT}.html", headers=olga)
    for answer in (whole, data, client.get("/refit/report/retrain_model-000/run-0001", headers=olga)):
        assert answer.status_code == 200
        assert answer.headers["content-security-policy"].startswith("sandbox ")
        assert "allow-scripts" not in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_links_from_airflow(client: TestClient, olga: dict[str, str]) -> None:
    assert "model-000 run-0002" in client.get("/refit/report/retrain_model-000/run-0002", headers=olga).text
    assert "model-000's data" in client.get("/refit/report/retrain_model-000/run-0002?data=true", headers=olga).text
    assert "version 6 serves" in client.get("/refit/of/retrain_model-000", headers=olga).text
    for path in ("/refit/report/retrain_model-000/scheduled__2026-01-01T00:00:00+00:00", "/refit/of/somebody_elses"):
        assert client.get(path, headers=olga).status_code == 404
    names = [
        v["name"] for p in client.get("/api/v2/plugins", headers=olga).json()["plugins"] for v in p["external_views"]
    ]
    assert names == ["Models", "Model", "Report"]


@pytest.mark.parametrize(
    "path",
    [
        "/models/no-such",
        "/models/..%2f..",
        "/models/%3Cscript%3Ealert(1)%3C%2Fscript%3E",
        "/models/model-000?run=no-such",
        "/models/model-000?run=..%2F..%2Fmodel-001%2Fruns%2Frun-0001",
        "/models/model-000/compare?run=run-0001",
        "/models/model-000/compare?run=run-0001&run=gone",
        "/published/model-000/runs/run-0001/..%2Findex.json",
        "/published/model-000/runs/..%2f..%2fmodel-001/report.html",
        "/published/model-000/runs/run-0001/data.html",  # a link to a file outside
        "/published/model-000/runs/linked/report.html",  # a link to another pipeline's folder
        "/published/half/runs/run-0001/report.html",
        "/published/model-000/runs/run-0001/plan.json",
        "/published/model-000/data/..%2Findex.json",
        "/published/..%2Fmodel-000/runs/run-0001/report.html",
        "/api/models/no-such",
        "/static/..%2fstore.py",
    ],
)
def test_what_is_not_there_or_not_for_you(client: TestClient, olga: dict[str, str], path: str) -> None:
    answer = client.get(f"/refit{path}", headers=olga)
    assert answer.status_code == 404
    assert "not for you" not in answer.text
    assert "<script>alert" not in answer.text


def test_a_pipeline_before_its_first_run_has_ended(client: TestClient, olga: dict[str, str]) -> None:
    text = client.get("/refit/models/fresh", headers=olga).text
    assert "Nothing of this pipeline serves." in text
    assert 'data-dialog="retrain"' in text
    assert client.get("/refit/api/models/fresh", headers=olga).json()["going_on"] == []
    assert "manual__asks" in client.get("/refit/models/asking", headers=olga).text


def test_half_written_files_say_what_to_do(client: TestClient, olga: dict[str, str], root: Path) -> None:
    text = client.get("/refit/models/half", headers=olga).text
    assert "not known what serves" in text
    assert "refit publish half" in text
    report = root / "model-001" / "runs" / "run-0006" / "report.json"
    report.write_text(report.read_text()[:999])
    text = client.get("/refit/models/model-001", headers=olga).text  # the run of its champion
    assert "version 6 serves" in text
    assert "remove published/model-001/runs/run-0006" in text
    for page in ("?run=run-0006", "/compare?run=run-0001&run=run-0006"):
        answer = client.get(f"/refit/models/model-001{page}", headers=olga)
        assert (answer.status_code, "or it is damaged" in answer.text) == (404, True)
        assert "below published/model-001/runs, then: refit publish model-001" in answer.text
    index = root / "model-001" / "index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "damaged": [3]}))
    assert "record of version 3 cannot be read" in client.get("/refit/models/model-001", headers=olga).text


def test_an_index_of_another_shape_is_shown_harmlessly(client: TestClient, olga: dict[str, str]) -> None:
    assert "nothing serves" in client.get("/refit/models/odd", headers=olga).text
