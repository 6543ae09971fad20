"""The input YAML of the Kubeflow TLT pipeline in its three shapes, from files and from a server on loopback."""

from __future__ import annotations

import io
import os
import socket
import stat
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.migrate import old
from tests.migrate.conftest import Called, Server

Refit = Callable[..., Called]
Serve = Callable[..., Server]
SPECS = {
    "convert.txt": old.CONVERT,
    "train.txt": old.detectnet(),
    "retrain.txt": old.detectnet(retrain=True, epochs=20, start="/workspace/pruned.tlt"),
}
PAGE = "<!DOCTYPE html><html><body>Sign in to see this file</body></html>"


def zipped(files: dict[str, str | bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as z:
        for name, text in files.items():
            z.writestr(name, text)
    return out.getvalue()


def local(folder: Path, text: str) -> Path:
    folder.mkdir()
    for name, spec in SPECS.items():
        (folder / name).write_text(spec)
    file = folder / "input.yaml"
    file.write_text(text)
    return file


def made(path: Path) -> dict[str, Any]:
    return dict(yaml.safe_load(path.read_text()))


def test_the_first_shape(refit: Refit, tmp_path: Path) -> None:
    file = local(tmp_path / "old", old.kubeflow())
    told = refit("import", file, "--into", "new")
    assert told.code == 0, told.text
    pipeline = made(tmp_path / "new/detectnet_v2.yaml")
    assert pipeline["network"]["pretrained"] == {
        "ngc": "nvidia/tao/pretrained_object_detection:resnet18",
        "secret": "NGC_API_KEY",
    }
    assert pipeline["stages"]["build_engine"] == {"precision": "int8"}
    assert [pipeline["resources"]["stages"][s]["gpus"] for s in ("train", "retrain")] == [2, 2]
    assert pipeline["stages"]["retrain"] == {"spec": "detectnet_v2/retrain.txt", "epochs": 20}
    assert refit("validate", "new/detectnet_v2.yaml").code == 0
    assert f"{file}:2: api_key: a secret in plain text" in told.out
    assert old.API_KEY not in told.text + "".join(p.read_text() for p in (tmp_path / "new").rglob("*.*"))


def test_the_third_shape_from_a_server(refit: Refit, serve: Serve, tmp_path: Path) -> None:
    server = serve()
    specs = server.add("/specs.zip", zipped({f"specs/{n}": t for n, t in SPECS.items()} | {"specs/photo.png": b"\x89"}))
    data = server.add(
        "/cars.zip", zipped({"cars/training/image_2/1.png": b"p", "cars/training/label_2/1.txt": "Car 0"})
    )
    url = server.add("/input.yaml", old.kubeflow_zip(data, specs))
    told = refit("import", url, "--into", "new", "--data", "data/cars", "--allow-http")
    assert told.code == 0, told.text
    pipeline = made(tmp_path / "new/street-cars.yaml")
    assert pipeline["dataset"]["source"] == str(tmp_path / "data/cars/cars/training")
    assert pipeline["dataset"]["class_map"]["Car"] == "car"
    assert refit("validate", "new/street-cars.yaml").code == 0
    assert sorted(p.name for p in (tmp_path / "data").iterdir()) == ["cars"]


def test_yaml_on_one_line_is_yaml(refit: Refit, tmp_path: Path) -> None:
    text = old.kubeflow().replace(old.SPECS, "specs: {train_spec: train.txt, retrain_spec: retrain.txt}\n")
    told = refit("import", local(tmp_path / "old", text), "--into", "new")
    assert told.code == 0, told.text
    assert "dataset_convert" not in made(tmp_path / "new/detectnet_v2.yaml")["stages"]


def test_dvc_becomes_a_script_and_containers_are_noted(refit: Refit, tmp_path: Path) -> None:
    file = local(tmp_path / "old", old.kubeflow() + old.DVC)
    told = refit("import", file, "--into", "new", "--name", "cars")
    assert told.code == 0
    assert refit("validate", "new/cars.yaml").code == 0
    pipeline = made(tmp_path / "new/cars.yaml")
    assert (pipeline["schedule"], pipeline["dataset"]["arrival"]) == ("on_arrival", {"marker": "_SUCCESS"})
    text = (tmp_path / "new/cars.yaml").read_text()
    for container in ("az://data", "az://specs", "az://models"):
        assert container in text
    assert stat.S_IMODE((tmp_path / "new/cars/dvc.sh").stat().st_mode) == 0o755


def git(*argv: object, cwd: Path) -> None:
    subprocess.run(["git", *map(str, argv)], cwd=cwd, check=True, capture_output=True)


def test_the_dvc_script_runs(refit: Refit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a real git; dvc is a stand-in that notes how it is called. The message of the old file is only a message."""
    for name, value in {"NAME": "T", "EMAIL": "t@example.com"}.items():
        monkeypatch.setenv(f"GIT_AUTHOR_{name}", value)
        monkeypatch.setenv(f"GIT_COMMITTER_{name}", value)
    work, bare = tmp_path / "work", tmp_path / "remote.git"
    work.mkdir()
    git("init", "-q", "-b", "main", cwd=work)
    (work / "data/label_2").mkdir(parents=True)
    for number in ("1", "2"):
        (work / "data/label_2/a.txt").write_text(number)
        git("add", "-A", cwd=work)
        git("commit", "-qm", f"data {number}", cwd=work)
    git("clone", "-q", "--bare", work, bare, cwd=tmp_path)
    evil = "it's $(touch pwned) `touch pwned`; touch pwned"
    block = old.DVC.replace("https://git.example.com/team/cars.git", f"file://{bare}")
    block = block.replace("commit_msg: a new model", f"commit_msg: {evil!r}").replace("latest", "data 1")
    file = local(tmp_path / "old", old.kubeflow() + block)
    assert refit("import", file, "--into", "new", "--name", "cars").code == 0
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "dvc").write_text(
        '#!/bin/sh\necho "$@" >> "$DVC_LOG"\n'
        '[ "$1" != add ] || { echo x > "$3.dvc"; echo /cars >> models/.gitignore; }\n'
    )
    (tools / "dvc").chmod(0o755)
    env = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "INBOX": str(tmp_path / "inbox"),
           "REPO": str(tmp_path / "repo"), "DVC_LOG": str(tmp_path / "dvc.log")}  # fmt: skip
    script = tmp_path / "new/cars/dvc.sh"
    pulled = subprocess.run([script, "pull"], env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert pulled.returncode == 0, pulled.stderr
    assert (tmp_path / "inbox/label_2/a.txt").read_text() == "1", "of the commit with the message, not the latest"
    assert (tmp_path / "inbox/_SUCCESS").exists()
    model = tmp_path / "cars"
    model.mkdir()
    pushed = subprocess.run([script, "push", model], env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert pushed.returncode == 0, pushed.stderr
    log = subprocess.run(["git", "log", "-1", "--format=%s|%an"], cwd=bare, capture_output=True, text=True, check=True)
    assert log.stdout.startswith(evil)
    assert (tmp_path / "dvc.log").read_text().splitlines() == ["pull -- data", "add -- models/cars", "push"]
    assert not list(tmp_path.rglob("pwned"))


def test_comments_cannot_be_left_by_what_a_file_says(refit: Refit, tmp_path: Path) -> None:
    text = old.kubeflow_zip("https://data.example.com/x.zip", "SPECS").replace("'3'", '"3\\nrelease: false\\n#"')
    file = local(tmp_path / "old", text.replace("spec:\n  spec_url: SPECS\n", old.SPECS))
    assert refit("import", file, "--into", "new").code == 0
    assert "release" not in made(tmp_path / "new/street-cars.yaml")


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (("detectnet_v2", "detectnetv2"), "Refit does not train 'detectnetv2'; did you mean 'detectnet_v2'?"),
        (("'2'", "'two'"), "num_gpus: 'two' is no number of GPUs"),
        (("int8", "int4"), "model.data_type: 'int4'; use fp32, fp16, int8"),
        (("  base_model: detectnet_v2\n", ""), "model.base_model: is missing"),
        (("train_spec: train.txt", "train_spec: tarin.txt"), "specs.train_spec: "),
    ],
)  # fmt: skip
def test_faults_of_the_input(refit: Refit, tmp_path: Path, edit: tuple[str, str], told: str) -> None:
    file = local(tmp_path / "old", old.kubeflow().replace(*edit))
    called = refit("import", file, "--into", "new")
    assert called.code == 2
    assert called.err.startswith(f"error: {file}:")
    assert told in called.err
    assert not (tmp_path / "new").exists()


def test_an_input_whose_specs_are_nowhere(refit: Refit, tmp_path: Path) -> None:
    file = tmp_path / "input.yaml"
    file.write_text(old.kubeflow().replace(old.SPECS, ""))
    called = refit("import", file, "--into", "new")
    assert called.code == 2
    assert "--classes car,person" in called.err
    called = refit("import", file, "--into", "new", "--classes", "car")
    assert called.code == 0, called.text
    assert refit("validate", "new/detectnet_v2.yaml").code == 0


def test_a_retraining_without_a_spec_has_the_trainings(refit: Refit, tmp_path: Path) -> None:
    file = local(tmp_path / "old", old.kubeflow().replace("  retrain_spec: retrain.txt\n", ""))
    assert refit("import", file, "--into", "new").code == 0
    assert made(tmp_path / "new/detectnet_v2.yaml")["stages"]["retrain"] == {"spec": "detectnet_v2/train.txt"}
    judged = refit("validate", "new/detectnet_v2.yaml")
    assert judged.code == 0, judged.err


def test_keys_that_no_shape_has_are_told(refit: Refit, tmp_path: Path) -> None:
    file = local(tmp_path / "old", old.kubeflow() + "nmu_gpus: '4'\n\"\\e[31m\": 1\n")
    told = refit("import", file, "--into", "new")
    assert "\x1b" not in told.text
    assert "nmu_gpus: is not carried over: import does not know it; did you mean 'num_gpus'?" in told.out


# --- what URLs lead to ------------------------------------------------------------------------------------------------


def test_plain_http_must_be_allowed(refit: Refit, serve: Serve, tmp_path: Path) -> None:
    server = serve()
    told = refit("import", server.add("/input.yaml", old.kubeflow()), "--into", "new")
    assert told.code == 2
    assert "plain http" in told.err
    assert "--allow-http" in told.err
    assert server.asked == []


@pytest.mark.parametrize("content", ["text/html", "application/zip"])
def test_a_web_page_in_place_of_the_specs(refit: Refit, serve: Serve, tmp_path: Path, content: str) -> None:
    server = serve()
    specs = server.add("/specs.zip", PAGE, Content_Type=content)
    file = tmp_path / "input.yaml"
    file.write_text(old.kubeflow_zip("https://data.example.com/x.zip", specs))
    told = refit("import", file, "--into", "new", "--allow-http")
    assert told.code == 2
    assert f"{specs}: is a web page, no zip" in told.err
    assert not (tmp_path / "new").exists()


def test_a_web_page_in_place_of_the_data(refit: Refit, serve: Serve, tmp_path: Path) -> None:
    server = serve()
    data = server.add("/share?file=cars.zip".partition("?")[0], PAGE)
    file = local(tmp_path / "old", old.kubeflow(data))
    told = refit("import", file, "--into", "new", "--allow-http")
    assert told.code == 0, "the pipeline is good; the data can come another way"
    assert f"warning: {file}:1: {data}: is a web page, no zip" in told.err
    told = refit("import", file, "--into", "new2", "--allow-http", "--data", "data")
    assert told.code == 2
    assert f"{data}: is a web page, no zip" in told.err
    assert not (tmp_path / "data").exists()
    assert not (tmp_path / "new2").exists()


def test_a_redirect_to_a_private_address_is_not_followed(refit: Refit, serve: Serve) -> None:
    inside, server = serve("127.0.0.2"), serve()
    secret = inside.add("/input.yaml", old.kubeflow())
    url = server.add("/input.yaml", "", status=302, Location=secret)
    told = refit("import", url, "--into", "new", "--allow-http")
    assert told.code == 2
    assert "leads to the private address 127.0.0.2" in told.err
    assert inside.asked == []


def test_a_name_that_leads_to_a_private_address(refit: Refit, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """The address of the connection counts, not the name in the URL."""
    inside, server = serve("127.0.0.2"), serve()
    inside.add("/input.yaml", old.kubeflow())
    port = inside.url.rpartition(":")[2]
    real = socket.getaddrinfo

    def lookup(host: str, *more: Any, **options: Any) -> Any:
        return real("127.0.0.2" if host == "public.example.com" else host, *more, **options)

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    url = server.add("/input.yaml", "", status=302, Location=f"http://public.example.com:{port}/input.yaml")
    told = refit("import", url, "--into", "new", "--allow-http")
    assert told.code == 2
    assert "leads to the private address 127.0.0.2" in told.err
    assert inside.asked == []


def test_a_downloaded_file_cannot_name_a_private_address(refit: Refit, serve: Serve) -> None:
    inside, server = serve("127.0.0.2"), serve()
    specs = inside.add("/specs.zip", zipped(SPECS))
    url = server.add("/input.yaml", old.kubeflow_zip("https://data.example.com/x.zip", specs))
    told = refit("import", url, "--into", "new", "--allow-http")
    assert told.code == 2
    assert "leads to the private address 127.0.0.2" in told.err
    assert inside.asked == []


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("http://[::1/x.zip", "is no URL"),
        ("https://example.com:port/x.zip", "Port could not be cast"),
        ("file:///etc/passwd", "only https URLs are read"),
        ("ftp://example.com/x.zip", "only https URLs are read"),
    ],
)
def test_urls_that_are_none(refit: Refit, tmp_path: Path, url: str, told: str) -> None:
    file = tmp_path / "input.yaml"
    file.write_text(old.kubeflow_zip("https://data.example.com/x.zip", url))
    called = refit("import", file, "--into", "new")
    assert called.code == 2
    assert told in called.err


def test_a_redirect_on_the_same_host_is_followed(refit: Refit, serve: Serve, tmp_path: Path) -> None:
    server = serve()
    server.add("/moved.yaml", old.kubeflow("https://data.example.com/x.zip").replace(": train.txt", ": /train.txt"))
    for name, text in SPECS.items():
        server.add(f"/{name}", text)
    url = server.add("/input.yaml", "", status=302, Location="/moved.yaml")
    told = refit("import", url, "--into", "new", "--allow-http")
    assert told.code == 0, told.text
    server.add("/round", "", status=302, Location="/round")
    assert "redirects more than 5 times" in refit("import", server.url + "/round", "--allow-http").err
    server.add("/half", "", status=302, Location="http://[::1/x")
    told = refit("import", server.url + "/half", "--allow-http")
    assert (told.code, "redirects to something that is no URL" in told.err) == (2, True)


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ({"../out.txt": "x"}, "'../out.txt', which leads out of it"),
        ({"/tmp/out.txt": "x"}, "which leads out of it"),
        ({"C:\\out.txt": "x"}, "which leads out of it"),
        ({"a.txt": b"PK" + b"x" * (2 << 20)}, "a.txt is too large for a spec"),
    ],
)
def test_zips_with_bad_intent(
    refit: Refit, serve: Serve, tmp_path: Path, entry: dict[str, str | bytes], told: str
) -> None:
    server = serve()
    url = server.add("/specs.zip", zipped({**SPECS, **entry}))
    called = refit("import", url, "--into", "new", "--allow-http")
    assert called.code == 2
    assert told in called.err
    assert not (tmp_path / "new").exists()


def test_a_link_in_the_data_and_a_bomb(refit: Refit, serve: Serve, tmp_path: Path) -> None:
    server = serve()
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as z:
        link = zipfile.ZipInfo("cars")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        z.writestr(link, "/etc")
    for path, body, told in (
        ("/link.zip", out.getvalue(), "is no file; not unpacked"),
        ("/bomb.zip", zipped({"zero": b"\0" * (4 << 20)}), "unpacks to more than 1 MiB"),
        ("/cut.zip", zipped({"a": "b"})[:-30], "a damaged zip"),
    ):
        file = tmp_path / "input.yaml"
        for name, spec in SPECS.items():
            (tmp_path / name).write_text(spec)
        file.write_text(old.kubeflow(server.add(path, body)))
        called = refit("import", file, "--into", "new", "--allow-http", "--data", "data", "--max-gib", 1 / 1024)
        assert called.code == 2
        assert told in called.err
        assert not (tmp_path / "data").exists()
        assert not list(tmp_path.glob(".data*"))


def test_sizes_are_limited(refit: Refit, serve: Serve) -> None:
    server = serve()
    large = server.add("/input.yaml", "", Content_Length=str(1 << 40))
    assert "at most 64.0 MiB are taken" in refit("import", large, "--allow-http").err
    assert "404" in refit("import", server.url + "/none.yaml", "--allow-http").err


def test_a_signed_url_is_used_and_not_shown(refit: Refit, serve: Serve, tmp_path: Path) -> None:
    server = serve()
    specs = server.add("/specs.zip", zipped(dict(SPECS)))
    file = tmp_path / "input.yaml"
    file.write_text(old.kubeflow_zip("https://data.example.com/x.zip", f"{specs}?sv=1&sig=nobody-may-see-this"))
    told = refit("import", file, "--into", "new", "--allow-http")
    assert told.code == 0, told.text
    assert server.asked == ["/specs.zip?sv=1&sig=nobody-may-see-this"]
    assert "nobody-may-see-this" not in told.text + "".join(p.read_text() for p in (tmp_path / "new").rglob("*.*"))
