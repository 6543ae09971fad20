"""uv gets pip's settings, and the CPU build of PyTorch."""

import pytest

from refit.embedded import installer

LOCK = "numpy==2.4.6\ntorch==2.13.0\ntorch-pruning==1.6.1\n"
WHEEL = "torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl"


def test_pips_settings_become_uvs(tmp_path):
    cert = tmp_path / "ca.pem"
    cert.touch()
    pip = {
        "index-url": "https://mirror.example/simple",
        "extra-index-url": "https://a.example/simple\nhttps://b.example/simple",
        "find-links": "/a /b",
        "cert": str(cert),
    }
    env = installer.uv_environment({"HOME": "/home/x"}, pip, tmp_path)
    assert env["UV_DEFAULT_INDEX"] == "https://mirror.example/simple"
    assert env["UV_EXTRA_INDEX_URL"] == "https://a.example/simple https://b.example/simple"
    assert env["UV_INDEX_STRATEGY"] == "unsafe-best-match"
    assert env["UV_FIND_LINKS"] == "/a,/b"
    assert env["SSL_CERT_FILE"] == str(cert)
    assert env["HOME"] == "/home/x"


def test_what_the_user_told_uv_wins(tmp_path):
    own = {"UV_DEFAULT_INDEX": "https://own.example", "UV_INDEX": "https://more.example", "SSL_CERT_FILE": "/own.pem"}
    pip = {"index-url": "https://pip.example", "extra-index-url": "https://x.example", "cert": __file__}
    env = installer.uv_environment(own, pip, tmp_path)
    assert {k: env[k] for k in own} == own
    assert "UV_EXTRA_INDEX_URL" not in env


def test_an_activated_environment_does_not_leak_in(tmp_path):
    env = installer.uv_environment({"VIRTUAL_ENV": "/v", "PYTHONPATH": "/p", "CONDA_PREFIX": "/c"}, {}, tmp_path)
    assert not {"VIRTUAL_ENV", "PYTHONPATH", "CONDA_PREFIX"} & set(env)


def test_pip_variables_win_over_pips_files():
    assert installer.pip_settings({"PIP_FIND_LINKS": "/mine"})["find-links"] == "/mine"


def test_torch_comes_from_a_folder_of_wheels_that_has_the_cpu_build(tmp_path):
    (tmp_path / WHEEL).touch()
    assert installer.torch_backend(LOCK, {"UV_FIND_LINKS": f"/nowhere,{tmp_path}"}) == []
    assert installer.torch_backend(LOCK, {"UV_FIND_LINKS": f"file://{tmp_path}"}) == []


@pytest.mark.parametrize("name", ["torch-2.12.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl", "torch-2.13.0-cp311-x.whl"])
def test_another_version_or_build_in_the_folder_does_not_count(tmp_path, name):
    (tmp_path / name).touch()
    assert installer.torch_backend(LOCK, {"UV_FIND_LINKS": str(tmp_path)}) == ["--torch-backend=cpu"]


def test_without_a_folder_uv_is_told_to_take_the_cpu_build():
    assert installer.torch_backend(LOCK, {}) == ["--torch-backend=cpu"]


def test_nothing_is_said_about_torch_where_it_is_not_needed_or_chosen():
    assert installer.torch_backend("torch-pruning==1.6.1\n", {}) == []
    assert installer.torch_backend(LOCK, {"UV_TORCH_BACKEND": "cu128"}) == []


def test_a_python_that_pyenv_hides_is_found(tmp_path):
    uv = tmp_path / "uv"
    uv.write_text("#!/bin/sh\nexit 2\n")  # finds none and fetches none
    uv.chmod(0o755)
    for version in ("3.12.9", "3.12.10", "3.13.0"):
        python = tmp_path / "versions" / version / "bin" / f"python{version.rpartition('.')[0]}"
        python.parent.mkdir(parents=True)
        python.touch(0o755)
    env = {"PYENV_ROOT": str(tmp_path), "UV_PYTHON_INSTALL_DIR": str(tmp_path / "fetched")}
    assert installer.find_python(str(uv), env, "3.12") == str(tmp_path / "versions/3.12.10/bin/python3.12")
    with pytest.raises(installer.SetupError, match=r"install Python 3\.14"):
        installer.find_python(str(uv), env, "3.14")
