"""Our onnxruntime backend in a real Triton: onnxruntime's own answers, and clear refusals."""

from __future__ import annotations

import re
import threading

import numpy as np
import pytest
from onnx import TensorProto

from refit.triton.client import Answer, TritonClient
from refit.triton.config import ModelConfig, read_signature
from refit.triton.errors import InferenceFailed, LoadFailed
from tests.triton.fixtures import Place
from tests.triton.models import BOXES, COVERAGE, INPUT, identity, make_onnx, noise, onnxruntime_answers


def serve(place: Place, change: tuple[str, str] | None = None, load: bool = True, **options: object) -> None:
    """Put a tiny model in the repository by hand, its config.pbtxt changed by a pattern, and load it."""
    folder = place.repository / place.name
    path = make_onnx(folder / "1" / "model.onnx")
    text = ModelConfig(place.name, 1, read_signature(path), **options).text()  # type: ignore[arg-type]
    if change is not None:
        text, count = re.subn(*change, text, flags=re.DOTALL)
        assert count >= 1
    (folder / "config.pbtxt").write_text(text)
    if load:
        place.client.load(place.name)


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_answers_are_those_of_onnxruntime_bit_for_bit(place: Place, rows: int) -> None:
    serve(place)
    arrays = {INPUT: noise(rows)}
    right = onnxruntime_answers(place.repository / place.name / "1" / "model.onnx", arrays, place.folder)
    answer = place.client.infer(place.name, arrays)
    assert answer.version == 1
    assert set(answer.outputs) == {COVERAGE, BOXES}
    for name, array in right.items():
        assert answer.outputs[name].dtype == array.dtype
        assert answer.outputs[name].shape == (rows, *array.shape[1:])
        assert np.array_equal(answer.outputs[name], array)


def test_requests_that_meet_are_answered_together_and_apart(place: Place) -> None:
    serve(place, dynamic_batching=True, queue_delay_us=100_000)
    samples = [noise(1 + i % 2, seed=i) for i in range(8)]
    answers: dict[int, Answer] = {}

    def ask(index: int) -> None:
        with TritonClient(place.server.url) as mine:
            answers[index] = mine.infer(place.name, {INPUT: samples[index]})

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(samples))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    statistics = place.client._client.get_inference_statistics(place.name)["model_stats"][0]
    assert statistics["inference_count"] - statistics["execution_count"] > 1  # the warm-up is one of each
    path = place.repository / place.name / "1" / "model.onnx"
    for index, sample in enumerate(samples):
        right = onnxruntime_answers(path, {INPUT: sample}, place.folder) if index < 2 else None
        assert len(answers[index].outputs[COVERAGE]) == len(sample)
        alone = place.client.infer(place.name, {INPUT: sample})
        for name in (COVERAGE, BOXES):
            # Another batch size may take another kernel: equal but for the last bits.
            np.testing.assert_allclose(answers[index].outputs[name], alone.outputs[name], rtol=1e-5, atol=1e-6)
            if right is not None:
                assert np.array_equal(alone.outputs[name], right[name])


@pytest.mark.parametrize(
    ("pattern", "replacement", "message"),
    [
        (f'name: "{INPUT}"', 'name: "other"', r"config.pbtxt names input 'other'; the ONNX file has \['input_1'\]"),
        (f'name: "{BOXES}"', 'name: "boxes"', "config.pbtxt names output 'boxes'"),
        (r"(output.*?)TYPE_FP32", r"\1TYPE_FP16", r"TYPE_FP16 in config.pbtxt and tensor\(float\) in the ONNX file"),
        (r"(output.*?)dims: 2", r"\1dims: 3", r"has dims \[-1, 3, 2, 2\] by config.pbtxt .* \[-1, 2, 2, 2\]"),
        ("max_batch_size: 8", "max_batch_size: 0", r"max_batch_size 0"),
        ("TYPE_FP32", "TYPE_STRING", "serves numbers only"),
        ("backend:", 'default_model_filename: "nothing.onnx" backend:', "there is no file .*nothing.onnx"),
        (
            "backend:",
            'parameters { key: "intra_op_thread_count" value { string_value: "two" } } backend:',
            "intra_op_thread_count is 'two'; give a whole number",
        ),
    ],
)
def test_configurations_that_do_not_fit_the_file(place: Place, pattern: str, replacement: str, message: str) -> None:
    # The warm-up is left out: it would fail first for some, with Triton's words.
    serve(place, (pattern, replacement), load=False)
    config = place.repository / place.name / "config.pbtxt"
    config.write_text(re.sub(r"model_warmup \{.*?\n\}\n", "", config.read_text(), flags=re.DOTALL))
    with pytest.raises(LoadFailed, match=message):
        place.client.load(place.name)


def test_threads_and_levels_are_taken(place: Place) -> None:
    extra = (
        'parameters { key: "intra_op_thread_count" value { string_value: "1" } }\n'
        'parameters { key: "inter_op_thread_count" value { string_value: "1" } }\n'
        'parameters { key: "execution_mode" value { string_value: "1" } }\n'
        "optimization { graph { level: -1 } }\nbackend:"
    )
    serve(place, ("backend:", extra))
    arrays = {INPUT: noise(2)}
    right = onnxruntime_answers(place.repository / place.name / "1" / "model.onnx", arrays, place.folder)
    answer = place.client.infer(place.name, arrays)
    for name, array in right.items():
        np.testing.assert_allclose(answer.outputs[name], array, rtol=1e-5, atol=1e-6)


def test_output_that_breaks_its_promise_is_an_error(place: Place) -> None:
    """The ONNX file leaves the channels open, so only an answer can show that config.pbtxt promises too much."""
    folder = place.repository / place.name
    (folder / "1").mkdir(parents=True)
    path = identity(folder / "1" / "model.onnx", TensorProto.FLOAT, ["N", "channels", 2])
    text = ModelConfig(place.name, 1, read_signature(path)).text()
    text, count = re.subn(r"(output.*?)dims: -1", r"\1dims: 3", text, flags=re.DOTALL)
    assert count == 1
    (folder / "config.pbtxt").write_text(text)
    place.client.load(place.name)
    good = np.ones((1, 3, 2), np.float32)
    assert np.array_equal(place.client.infer(place.name, {"a": good}).outputs["b"], good)
    with pytest.raises(InferenceFailed, match=r"shape \[1, 2, 2\], config.pbtxt promises \[1, 3, 2\]"):
        place.client.infer(place.name, {"a": good[:, :2]})
