"""A key in plain text is taken out of everything, and its value stands nowhere afterwards."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from refit.migrate.secrets import Vault, shown
from tests.migrate import old
from tests.migrate.conftest import Called

Refit = Callable[..., Called]
SECRET = "Zq7-made-up-for-this-test"

# (the text, the kind of key)
PLAIN = [
    (f"enc_key: '{SECRET}'", "encryption"),
    (f'enc_key: "{SECRET}"  # ours', "encryption"),
    (f"encryption_key: {SECRET}", "encryption"),
    (f"encryption_key: >-\n  {SECRET}", "encryption"),
    (f"api_key: {SECRET}\nnum_gpus: '1'", "ngc"),
    (f'{{"api_key": "{SECRET}"}}', "ngc"),
    (f"NGC_API_KEY={SECRET}", "ngc"),
    (f"# %env KEY={SECRET}", "encryption"),
    (f"# tlt detectnet_v2 train -e x -k {SECRET} --gpus 1", "encryption"),
    (f"# ngc --api-key={SECRET}", "ngc"),
    (f'{{"variable": "KEY", "value": "{SECRET}"}}', "encryption"),
    (f'{{"value": "{SECRET}",\n "variable": "NGC_API_KEY"}}', "ngc"),
    (f"git_repo: https://me:{SECRET}@git.example.com/x.git", "other"),
    (f"url: https://store.example.com/x.zip?sv=1&sig={SECRET}", "other"),
    (f"GIT_TOKEN: {SECRET}", "other"),
    (f"tlt-model-key={SECRET}", "encryption"),
    (f"enc_key: ['{SECRET}']", "encryption"),
    (f"{{api_key: {SECRET}}}", "ngc"),
]


@pytest.mark.parametrize(("text", "kind"), PLAIN)
def test_each_form_of_a_key_is_taken_out(text: str, kind: str) -> None:
    vault = Vault()
    clean = vault.take(text, "file")
    assert SECRET not in clean
    assert clean.count("\n") == text.count("\n"), "lines stay lines"
    assert kind in {f.kind for f in vault.found}
    assert SECRET not in repr(vault)
    assert SECRET not in shown(clean)
    assert vault.reveal(clean) == text


@pytest.mark.parametrize("value", ["a(b)c#d", "it's", "two words", "x{y}[z]", "p<q>;r,s", 'quo"te'])
def test_keys_of_odd_signs_go_as_a_whole(value: str) -> None:
    clean = Vault().take(f"api_key: {value}\nnum_gpus: '1'\n", "file")
    assert shown(clean) == "api_key: ***\nnum_gpus: '1'\n"


@pytest.mark.parametrize(
    "text",
    ['target_class_mapping { key: "car" value: "car" }', "enc_key: '$KEY'", "enc_key: <your key>", "api_key: ${NGC}",
     "git_repo: ssh://git@example.com/x.git", "keys: [a, b]", "api_key: ''"],
)  # fmt: skip
def test_what_is_no_key_stays(text: str) -> None:
    vault = Vault()
    assert vault.take(text, "file") == text
    assert not vault.found


def test_a_key_of_one_place_is_found_in_another() -> None:
    vault = Vault()
    vault.take(f"enc_key: '{SECRET}'", "a")
    assert SECRET not in vault.take(f"# remember: {SECRET}", "b")


def every_text(folder: Path) -> str:
    return "".join(p.read_text() + str(p) for p in folder.rglob("*") if p.is_file())


def test_no_value_in_any_file_or_line_of_output(refit: Refit, tmp_path: Path) -> None:
    spec, mounts, again = tmp_path / "train.txt", tmp_path / "mounts.json", tmp_path / "retrain.txt"
    spec.write_text(f"# once it was {SECRET}\n" + old.frcnn(key=SECRET) + f"# -k {SECRET}\n")
    again.write_text(old.frcnn(retrain=True, key=SECRET))
    mounts.write_text(old.MOUNTS.replace("SECRET", SECRET).replace("HOST", "/srv"))
    told = refit("import", again, spec, mounts, "--into", "new", "--name", "cars")
    assert told.code == 0
    assert SECRET not in told.text
    assert SECRET not in every_text(tmp_path / "new")
    assert SECRET not in refit("validate", "new/cars.yaml").text + refit("plan", "new/cars.yaml", "--specs").text
    assert f"warning: {spec}:3: enc_key: a secret in plain text; taken out. Revoke it" in told.out
    assert "key_secret: TAO_KEY" in (tmp_path / "new/cars.yaml").read_text()


@pytest.mark.parametrize(
    "text",
    [
        old.frcnn(key=SECRET).replace("verbose: true", "}"),
        old.frcnn(key=SECRET).replace(f"'{SECRET}'", f"{{ '{SECRET}'"),
        f"enc_key = {SECRET}\n",
        f"api_key: {SECRET}\nmodel:\n  base_model: detectnet_v3\n",
        f"api_key: *{SECRET}\nmodel: {{base_model: ssd}}\n",
        f"model: {{base_model: ssd}}\n{SECRET}: [\napi_key: {SECRET}\n",
        json.dumps({"frames": [], "api_key": SECRET}),
    ],
)
def test_no_value_in_an_error(refit: Refit, tmp_path: Path, text: str) -> None:
    file = tmp_path / "file.txt"
    file.write_text(text)
    told = refit("import", file, "--into", "new")
    assert told.code == 2
    assert told.err.startswith("error: ")
    assert SECRET not in told.text
