"""config.pbtxt: what is read from ONNX, what is written, and what Triton reads back."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto

from refit.triton.config import ModelConfig, Signature, Tensor, quote, read_signature
from refit.triton.errors import ArtefactError
from tests.triton.fixtures import Place
from tests.triton.models import BOXES, COVERAGE, INPUT, identity, make_onnx


def test_signature_of_a_free_batch(tmp_path: Path) -> None:
    assert read_signature(make_onnx(tmp_path / "m.onnx")) == Signature(
        (Tensor(INPUT, "FP32", (3, 32, 32)),),
        (Tensor(COVERAGE, "FP32", (2, 2, 2)), Tensor(BOXES, "FP32", (8, 2, 2))),
        batch=True,
    )


def test_signature_of_a_fixed_batch(tmp_path: Path) -> None:
    signature = read_signature(make_onnx(tmp_path / "m.onnx", batch=1))
    assert not signature.batch
    assert signature.inputs[0].dims == (1, 3, 32, 32)
    assert "max_batch_size: 0" in ModelConfig("m", 1, signature).text()


@pytest.mark.parametrize(
    ("kind", "datatype"),
    [
        (TensorProto.FLOAT16, "FP16"),
        (TensorProto.UINT8, "UINT8"),
        (TensorProto.INT64, "INT64"),
        (TensorProto.BOOL, "BOOL"),
    ],
)
def test_types(tmp_path: Path, kind: int, datatype: str) -> None:
    signature = read_signature(identity(tmp_path / "m.onnx", kind, ["N", 4, "side"]))
    assert signature.inputs == (Tensor("a", datatype, (4, -1)),)


def test_files_that_cannot_be_served(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="cannot be read"):
        read_signature(tmp_path / "nothing.onnx")
    (tmp_path / "text.onnx").write_text("this is no model")
    with pytest.raises(ArtefactError, match="no ONNX file or is cut short"):
        read_signature(tmp_path / "text.onnx")
    (tmp_path / "empty.onnx").write_bytes(b"")
    with pytest.raises(ArtefactError, match="no inputs"):
        read_signature(tmp_path / "empty.onnx")
    with pytest.raises(ArtefactError, match="type that Triton cannot serve"):
        read_signature(identity(tmp_path / "complex.onnx", TensorProto.COMPLEX64, ["N", 4]))
    with pytest.raises(ArtefactError, match="has no shape"):
        read_signature(identity(tmp_path / "shapeless.onnx", TensorProto.FLOAT, None))


def test_free_dims_are_warmed_up_where_their_size_is_known() -> None:
    signature = Signature((Tensor("a", "FP32", (3, -1, -1)),), (Tensor("b", "FP32", (3, -1, -1)),), batch=True)
    assert "model_warmup" not in ModelConfig("m", 1, signature).text()
    text = ModelConfig("m", 1, signature, free_dims={"a": (3, 32, 64)}).text()
    assert text.count("dims: -1") == 4
    assert "dims: 64" in text[text.index("model_warmup") :]


@given(st.text())
def test_quoted_text_is_read_back_by_protobuf(text: str) -> None:
    from google.protobuf import text_format

    message = onnx.StringStringEntryProto()  # any message with a string field
    text_format.Parse(f"value: {quote(text)}", message)
    assert message.value == text


def test_triton_reads_back_what_was_written(place: Place) -> None:
    folder = place.repository / place.name
    path = make_onnx(folder / "2" / "model.onnx")
    parameters = {
        "refit.model": '{"classes": ["grün", "☃", "a\\"b"], "path": "c:\\\\x"}\n\t\r\x01\x7f\\101',
        "empty": "",
        'odd "key"\\': "x",
    }
    config = ModelConfig(
        place.name,
        2,
        read_signature(path),
        max_batch_size=16,
        instances=2,
        dynamic_batching=True,
        queue_delay_us=500,
        parameters=parameters,
    )
    (folder / "config.pbtxt").write_text(config.text())
    place.client.load(place.name)
    served = place.client.config(place.name)
    assert served.parameters == parameters
    assert served.signature == config.signature
    assert served.versions == (2,)
    assert served.name == place.name
    raw = place.client._client.get_model_config(place.name)
    assert raw["max_batch_size"] == 16
    assert raw["dynamic_batching"]["max_queue_delay_microseconds"] == 500
    assert [(g["count"], g["kind"]) for g in raw["instance_group"]] == [(2, "KIND_CPU")]
    assert raw["model_warmup"][0]["inputs"][INPUT]["dims"] == [3, 32, 32]
    place.client.unload(place.name)
