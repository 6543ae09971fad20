"""Reading YAML: every fault has file, line, key and advice."""

from __future__ import annotations

from typing import Literal

import pytest
from pydantic import Field

from refit.specs import Spec, SpecError, dotted, load, parse_yaml, read


class Inner(Spec):
    size: int = Field(1, ge=1, le=9)
    mode: Literal["fast", "slow"] = "fast"


class Outer(Spec):
    name: str
    inner: Inner = Inner()
    many: list[Inner] = Field(default_factory=list)
    maybe: Inner | None = None
    flag: bool | Inner = False


def problems(text: str) -> list[str]:
    with pytest.raises(SpecError) as caught:
        load(Outer, parse_yaml(text, "f.yaml"))
    return [str(p) for p in caught.value.problems]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: a\ninner:\n  sise: 3\n", "f.yaml:3: inner.sise: unknown key; did you mean 'size'?"),
        ("name: a\ninner: {size: 10}\n", "f.yaml:2: inner.size: Input should be less than or equal to 9 (it is 10)"),
        (
            "name: a\ninner: {mode: fats}\n",
            "f.yaml:2: inner.mode: 'fats' is not a choice; use 'fast' or 'slow'; did you mean 'fast'?",
        ),
        ("inner: {}\n", "f.yaml:1: name: is missing; add it"),
        ("name: a\nmany:\n  - size: 1\n  - size: x\n", "f.yaml:4: many[1].size: Input should be a valid integer"),
        (
            "name: a\n\nmaybe:\n  size: 0\n",
            "f.yaml:4: maybe.size: Input should be greater than or equal to 1 (it is 0)",
        ),
        ("name: a\nname: b\n", "f.yaml:2: name: given twice; first on line 1"),
        ("name: [a\n", "f.yaml:2: not valid YAML"),
        (
            "name: a\ninner: fast\n",
            "f.yaml:2: inner: must be a mapping of keys to values (it is 'fast'); known here: mode",
        ),
        ("name: a\ninner: [size]\n", "f.yaml:2: inner: must be a mapping of keys to values; known here: mode, size"),
        ("name: a\nflag: {sise: 3}\n", "f.yaml:2: flag.sise: unknown key; did you mean 'size'?"),
        ("", "f.yaml:1: the file is empty"),
        ("- a\n", "f.yaml:1: must be a mapping"),
        ("name: &x {a: *x}\n", "f.yaml:1: name.a: an alias that contains itself"),
        ("name: 2026-13-45\n", "f.yaml:1: a value cannot be read"),
        ("name: !!python/object:os.system x\n", "f.yaml:1: could not determine a constructor"),
    ],
)
def test_fault_names_file_line_key_and_advice(text: str, expected: str) -> None:
    found = problems(text)
    assert len(found) == 1
    assert found[0].startswith(expected)


@pytest.mark.parametrize("bomb", ["a{0}: &a{0} [{1}]\n", "a{0}: &a{0} {{<<: [{1}]}}\n"])
def test_aliases_of_aliases_end_at_once(bomb: str) -> None:
    """Twenty lines that mean 8 ** 20 values: who waits for them waits for ever."""
    text = "a0: &a0 {x: 1}\n" + "".join(bomb.format(i, ", ".join([f"*a{i - 1}"] * 8)) for i in range(1, 21))
    with pytest.raises(SpecError, match=r"^f.yaml:\d+: a\d.*: aliases stand for more than 10,000 values"):
        parse_yaml(text, "f.yaml")
    wide = "few: &few [1, 2]\nmany: [" + "*few, " * 2_000 + "]\n"
    assert len(parse_yaml(wide + "plain: " + str([0] * 30_000), "f.yaml").data["many"]) == 2_000


@pytest.mark.parametrize(
    "text",
    [
        "name: " + "[" * 200_000,
        "- " * 200_000,
        "a0: &a0 [1]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 1_000)),
    ],
)
def test_what_is_nested_too_deeply(text: str) -> None:
    with pytest.raises(SpecError, match=r"^f.yaml:\d+: nested more than 100 levels deep"):
        parse_yaml(text, "f.yaml")


def test_all_faults_are_reported_in_the_order_of_the_file() -> None:
    found = problems("nmae: a\ninner:\n  size: 0\n  mode: 7\n")
    assert [f.split(":")[1] for f in found] == ["1", "1", "3", "4"]


def test_a_missing_file_names_its_neighbour(tmp_path) -> None:
    (tmp_path / "demo.yaml").write_text("name: x\n")
    with pytest.raises(SpecError, match=r"no such file; did you mean 'demo\.yaml'"):
        read(Outer, tmp_path / "demp.yaml")
    with pytest.raises(SpecError, match=r"no such file$"):
        read(Outer, tmp_path / "parts.yaml")


def test_values_are_read_and_frozen(tmp_path) -> None:
    (tmp_path / "a.yaml").write_text("name: x\nmany: [{size: 2}]\n")
    made = read(Outer, tmp_path / "a.yaml")
    assert made.many[0].size == 2
    with pytest.raises(ValueError, match="frozen"):
        made.name = "y"


def test_dotted() -> None:
    assert dotted(("a", "b", 0, "c")) == "a.b[0].c"
