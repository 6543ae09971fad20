"""No secret reaches a log, a result or a terminal; whole, split, encoded or of many lines."""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, urlencode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refit.runner import Output, Scrubber
from tests.refit.runner_helpers import EDGES, Bench, python

TOKEN = 'p4ss"wörd/+%\\x'
KEY = "-----BEGIN KEY-----\nMIIEvQIBADANBgkqhkiG9w0\nAAECggEBAK0Xb7\n}\n-----END KEY-----\n"


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with Bench(tmp_path) as made:
        yield made


def everything_written(bench: Bench) -> str:
    paths = [p for p in bench.run_dir.rglob("*") if p.is_file() and p.parent != bench.out]
    return "\n".join(p.read_text() for p in [*paths, bench.compact])


@pytest.mark.parametrize("version", EDGES)
def test_a_secret_in_the_output_is_blotted_out_everywhere(bench: Bench, version: str) -> None:
    code = """
    secret = sys.argv[2]
    say("whole", secret)
    os.write(1, ("half " + secret[:5]).encode()); time.sleep(0.1); os.write(2, (secret[5:] + "\\n").encode())
    for character in ("slow " + secret + "\\n").encode(): os.write(1, bytes([character])); time.sleep(0.002)
    json.dump({"told": secret}, open(path("summary.json"), "w"))
    note(status="FAILURE", message="cannot log in with " + secret, kpi={"m " + secret: 1})
    say("error: bad password", secret)
    sys.exit(1)
    """
    request = bench.request(code, secrets=["PW"], summary="summary.json")
    request["argv"].append("{secret:PW}")
    done = bench.run(request, env={"REFIT_SECRET_PW": TOKEN, "LC_ALL": "C.UTF-8"}, by=python(version))
    assert done.outcome == "toolkit_error", done.output
    assert done.reason == "cannot log in with ***"
    assert done.result["summary"] == {"told": "***"}
    assert done.result["metrics"] == {"m ***": 1}
    assert done.result["log_tail"] == ["whole ***", "half ***", "slow ***", "error: bad password ***"]
    assert TOKEN not in done.output + everything_written(bench)
    assert json.dumps(TOKEN)[1:-1] not in done.output + everything_written(bench)
    assert "{secret:PW}" in done.output  # the command is shown with its token


def test_the_disguises_of_a_secret(bench: Bench) -> None:
    forms = [json.dumps(TOKEN), json.dumps(TOKEN, ensure_ascii=False), quote(TOKEN, safe="")]
    forms.append(base64.b64encode(TOKEN.encode()).decode())
    done = bench.run(bench.request("".join(f"say({form!r})\n" for form in forms)), env={"REFIT_SECRET_PW": TOKEN})
    assert done.result["log_tail"] == ['"***"', '"***"', "***", "***"]


@pytest.mark.parametrize("version", EDGES)
def test_a_private_key_is_blotted_out_line_by_line(bench: Bench, version: str) -> None:
    code = """
    key = os.environ["KEY"]
    say(key)
    for line in key.splitlines(): say("    > " + line)
    """
    request = bench.request(code, secrets=["KEY"], env={"KEY": "{secret:KEY}"})
    done = bench.run(request, env={"REFIT_SECRET_KEY": KEY}, by=python(version))
    assert done.outcome == "succeeded"
    for line in KEY.split():
        if len(line) > 7:
            assert line not in done.output + everything_written(bench)
    assert "    > }" in done.output  # one bracket is no secret


CONNECTION = {
    "conn_type": "aws",
    "login": "AKIAEXAMPLE",
    "password": "Secr3t/S",
    "host": "files.lab.example",
    "extra": {"region_name": "eu-central-1", "verify": "true", "keyfile_dict": {"private_key": KEY, "type": "service"}},
}


@pytest.mark.parametrize(
    "value",
    [
        json.dumps(CONNECTION),
        json.dumps({**CONNECTION, "extra": json.dumps(CONNECTION["extra"])}),
        "aws://AKIAEXAMPLE:Secr3t%2fS@files.lab.example/?"
        + urlencode({"region_name": "eu-central-1", "__extra__": json.dumps(CONNECTION["extra"])}),
    ],
)
def test_what_is_secret_in_a_connection(value: str) -> None:
    """A library prints the password, its form in a header or a line of the key, and never the whole connection."""
    scrubber = Scrubber({"REFIT_SECRET_AIRFLOW_CONN_LAB": value})
    basic = base64.b64encode(b"AKIAEXAMPLE:Secr3t/S").decode()
    for secret in ("Secr3t/S", "Secr3t%2FS", basic, *[line for line in KEY.splitlines() if len(line) > 7]):
        assert scrubber.text(f"403 for {secret}, true") == "403 for ***, true"
    told = "AKIAEXAMPLE at files.lab.example in eu-central-1 (aws)"
    assert scrubber.text(told) == told


def test_what_is_secret_in_a_header_and_a_signed_link() -> None:
    extra = {"headers": {"Authorization": "Token 0123456789abcdef"}, "query": "?sv=2024&sig=ab%2Bcdefghijklmnop"}
    scrubber = Scrubber({"REFIT_SECRET_LAB": json.dumps({"extra": extra})})
    assert scrubber.text("0123456789abcdef ab%2Bcdefghijklmnop ab+cdefghijklmnop 2024") == "*** *** *** 2024"


def test_empty_and_very_short_secrets_do_not_blot_out_words(bench: Bench) -> None:
    env = {"REFIT_SECRET_EMPTY": "", "REFIT_SECRET_SPACE": "   ", "REFIT_SECRET_PIN": "on", "REFIT_SECRET_": "strange"}
    done = bench.run(bench.request("say('one line on one station, strange')"), env=env)
    assert done.result["log_tail"] == ["one line on one station, strange"]
    assert "secret PIN is too short to be hidden in the output" in done.output


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ({"env": {"A": "{secret:OTHER}"}}, "env.A: {secret:OTHER} is not among the stage's secrets"),
        ({"env": {"A": "{secret:PW}"}}, "env.A: secret PW is not set (variable REFIT_SECRET_PW)"),
        ({"files": {"s": "{secret:PW}"}}, "files.s: {secret:PW} would be written to a file; pass it by env or argv"),
    ],
)
def test_a_secret_that_cannot_be_used_is_named(bench: Bench, where: dict[str, dict[str, str]], reason: str) -> None:
    done = bench.run(bench.request("say('started')", secrets=["PW"], **where))
    assert (done.code, done.outcome, done.reason) == (2, "bad_spec", reason)


def test_a_secret_is_known_in_a_request_that_cannot_be_used(bench: Bench) -> None:
    """Also what the runner says of a bad request is scrubbed."""
    done = bench.run(bench.request(name=None, key="k"), env={"REFIT_SECRET_PW": "name is missing"})
    assert "name is missing" not in done.output + bench.compact.read_text()


# --- the scrubber alone ---------------------------------------------------------------------------------------------

words = st.text(alphabet="ab\n", min_size=0, max_size=6)
secret_values = st.lists(st.text(alphabet="ab", min_size=4, max_size=8), min_size=1, max_size=3)


def scrub(secrets: list[str], chunks: list[bytes]) -> bytes:
    scrubber = Scrubber({f"REFIT_SECRET_S{i}": value for i, value in enumerate(secrets)})
    return b"".join([*(scrubber.feed(chunk) for chunk in chunks), scrubber.flush()])


@settings(max_examples=300, deadline=None)
@given(secret_values, st.lists(st.text(alphabet="ab\n", max_size=12), max_size=8))
def test_chunks_do_not_matter_and_no_secret_gets_through(secrets: list[str], texts: list[str]) -> None:
    """Over an alphabet in which secrets overlap each other and themselves all the time."""
    chunks = [text.encode() for text in texts]
    shown = scrub(secrets, chunks)
    for secret in secrets:
        assert secret.encode() not in shown.replace(b"***", b"|")
    assert shown.replace(b"*", b"").count(b"\n") == b"".join(chunks).count(b"\n")


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="abc", min_size=4, max_size=10), st.lists(words, min_size=1, max_size=6), st.data())
def test_a_single_secret_split_anywhere(secret: str, parts: list[str], data: st.DataObject) -> None:
    text = ("|" + secret + "|").join(part.replace("c", "") for part in parts).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    edges = [0, *cuts, len(text)]
    chunks = [text[a:b] for a, b in itertools.pairwise(edges)]
    assert scrub([secret], chunks) == scrub([secret], [text])
    assert secret.encode() not in scrub([secret], chunks)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300), st.integers(1, 7))
def test_what_holds_no_secret_comes_through_as_it_is(data: bytes, step: int) -> None:
    secret = "\u2603 no such text"
    assert scrub([secret], [data[i : i + step] for i in range(0, len(data), step)]) == data


def test_the_beginning_of_a_secret_waits_only_for_its_rest() -> None:
    scrubber = Scrubber({"REFIT_SECRET_A": "correct horse"})
    assert scrubber.feed(b"it is corr") == b"it is "
    assert scrubber.feed(b"upt\n") == b"corrupt\n"


def test_long_lines_and_progress_bars_stay_small_in_memory(capfd: pytest.CaptureFixture[str]) -> None:
    output = Output(Scrubber({}))
    for percent in range(1000):
        output.feed(b"\rloading %d%%" % (percent // 10))
    output.feed(b"\n")
    for _ in range(100):
        output.feed(b"y" * 10_000)
    output.feed(b"\n\x1b[31merror: red\x1b[0m\nlast")
    output.end()
    assert output.tail[0] == "loading 99%"
    assert len(output.tail[1]) <= 500
    assert list(output.tail)[2:] == ["error: red", "last"]
    assert output.error == "red"
    assert len(capfd.readouterr().out) > 1_000_000  # all of it was passed on


def test_the_runner_does_not_cut_the_commands_lines_in_two(bench: Bench) -> None:
    code = """
    os.write(1, b"first half, ")
    note(status="RUNNING", epoch=1, max_epoch=2, loss=0.5)
    time.sleep(0.3)
    os.write(1, b"second half\\n")
    """
    lines = bench.run(bench.request(code)).output.splitlines()
    assert "first half, second half" in lines or lines[lines.index("first half, ") + 1].startswith("epoch 1/2")
    assert any(line.startswith("epoch 1/2  loss 0.5") for line in lines)


def test_secrets_are_not_in_the_runners_own_process_list_entry(bench: Bench) -> None:
    request = bench.request(
        "say(open('/proc/%d/cmdline' % os.getppid()).read())", secrets=["PW"], env={"A": "{secret:PW}"}
    )
    done = bench.run(request, env={"REFIT_SECRET_PW": "open-sesame-123"})
    assert done.outcome == "succeeded"
    assert "open-sesame" not in done.output
