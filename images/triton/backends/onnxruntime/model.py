"""Triton's ``onnxruntime`` backend on the CPU, as a python-based backend.

The server of the ``nvidia-pytriton`` wheel brings no C++ onnxruntime backend. This file takes its place under the same
name, so a model repository that production serves (``backend: "onnxruntime"``, ``<model>/<version>/model.onnx``)
is served here without a change. The answers are those of onnxruntime itself, bit for bit.

What it does that Triton does not: the signature of the ONNX file is held against config.pbtxt when the model loads,
and the shape and type of every output are checked before they are sent (Triton passes on what it gets).

Supported in config.pbtxt: batching with or without ``dynamic_batching``, several CPU instances, ``optimization.graph
.level`` (-1, 1, 2), ``default_model_filename``, and the parameters ``intra_op_thread_count``, ``inter_op_thread_count``
and ``execution_mode``, all with the C++ backend's meaning. Refused with a reason: GPU instances, string and bfloat16
tensors, ``reshape``.

Runs inside Triton's Python stub: Python 3.11, numpy < 2, onnxruntime. Nothing of Refit is imported.
"""

import json
import os
from collections import defaultdict

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils

# config.pbtxt type -> (onnxruntime's element type, numpy type)
TYPES = {
    "TYPE_BOOL": ("tensor(bool)", np.bool_),
    "TYPE_UINT8": ("tensor(uint8)", np.uint8),
    "TYPE_UINT16": ("tensor(uint16)", np.uint16),
    "TYPE_UINT32": ("tensor(uint32)", np.uint32),
    "TYPE_UINT64": ("tensor(uint64)", np.uint64),
    "TYPE_INT8": ("tensor(int8)", np.int8),
    "TYPE_INT16": ("tensor(int16)", np.int16),
    "TYPE_INT32": ("tensor(int32)", np.int32),
    "TYPE_INT64": ("tensor(int64)", np.int64),
    "TYPE_FP16": ("tensor(float16)", np.float16),
    "TYPE_FP32": ("tensor(float)", np.float32),
    "TYPE_FP64": ("tensor(double)", np.float64),
}

# The C++ backend's numbers for `optimization.graph.level`; without it everything is optimized.
GRAPH_LEVELS = {
    -1: ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    1: ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    2: ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}


class TritonPythonModel:
    """One instance of one model version; Triton makes an object of this class in a process of its own."""

    def initialize(self, args):
        """Open the ONNX file and hold its inputs and outputs against config.pbtxt.

        Raises:
            pb_utils.TritonModelException: the file is missing or not ONNX, or it does not fit the configuration; the
                load fails with this message and versions that serve go on serving.
        """
        config = json.loads(args["model_config"])
        self.name = f"{args['model_name']} version {args['model_version']}"
        if args["model_instance_kind"] != "CPU":
            raise self._error(
                f"instance_group kind {args['model_instance_kind']}: this server has no GPU backend; use KIND_CPU"
            )
        path = os.path.join(
            args["model_repository"], args["model_version"], config.get("default_model_filename") or "model.onnx"
        )
        if not os.path.isfile(path):
            raise self._error(f"there is no file {path}")
        options = self._options(config)
        try:
            self.session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as exc:  # onnxruntime's own classes share no base
            raise self._error(f"onnxruntime cannot open {path}: {exc}") from exc
        self.max_batch = int(config.get("max_batch_size", 0))
        self.inputs = self._signature(config["input"], self.session.get_inputs(), "input")
        self.outputs = self._signature(config["output"], self.session.get_outputs(), "output")
        given = {node.name for node in self.session.get_inputs()}
        missing = sorted(given - set(self.inputs))
        if missing:
            raise self._error(f"config.pbtxt names no input {missing[0]!r}, and the ONNX file needs it")

    def execute(self, requests):
        """Answer requests: those of equal input shapes run as one batch, as the C++ backend does.

        Returns:
            One ``InferenceResponse`` per request, in order; a request that fails has an error in its response and
            does not touch the others.
        """
        responses = [None] * len(requests)
        groups = defaultdict(list)
        for index, request in enumerate(requests):
            arrays = {}
            try:
                for name in self.inputs:
                    tensor = pb_utils.get_input_tensor_by_name(request, name)
                    if tensor is None:
                        raise ValueError(f"input {name!r} is missing")
                    arrays[name] = tensor.as_numpy()
                key = tuple(array.shape[1:] for array in arrays.values()) if self.max_batch else (index,)
                groups[key].append((index, request, arrays))
            except Exception as exc:
                responses[index] = self._failure(exc)
        for members in groups.values():
            try:
                answers = self._run(members)
            except Exception as exc:
                answers = [self._failure(exc)] * len(members)
            for (index, _, _), answer in zip(members, answers, strict=True):
                responses[index] = answer
        return responses

    def finalize(self):
        """Give the session's memory back before the process ends."""
        self.session = None

    def _run(self, members):
        """Run one group of requests and cut the outputs apart again."""
        wanted = sorted({name for _, request, _ in members for name in request.requested_output_names()})
        unknown = [name for name in wanted if name not in self.outputs]
        if unknown:
            raise ValueError(f"output {unknown[0]!r} is not an output of the model; it has {sorted(self.outputs)}")
        if len(members) == 1:
            feeds = members[0][2]
        else:
            feeds = {name: np.concatenate([arrays[name] for _, _, arrays in members]) for name in self.inputs}
        rows = next(iter(feeds.values())).shape[0] if self.max_batch else None
        results = dict(zip(wanted, self.session.run(wanted, feeds), strict=True))
        for name, array in results.items():
            self._check(name, array, rows)
        answers, start = [], 0
        for _, request, arrays in members:
            stop = start + next(iter(arrays.values())).shape[0] if self.max_batch else None
            cut = slice(start, stop)
            tensors = [
                pb_utils.Tensor(name, np.ascontiguousarray(results[name][cut] if self.max_batch else results[name]))
                for name in request.requested_output_names()
            ]
            answers.append(pb_utils.InferenceResponse(output_tensors=tensors))
            start = stop
        return answers

    def _check(self, name, array, rows):
        """An output must have the type and dims that config.pbtxt promises to clients."""
        dims, dtype = self.outputs[name]
        expected = ([rows] if self.max_batch else []) + dims
        if array.dtype != dtype:
            raise ValueError(f"output {name!r} is {array.dtype}, config.pbtxt says {np.dtype(dtype)}")
        fits = len(array.shape) == len(expected) and all(
            want in (-1, got) for want, got in zip(expected, array.shape, strict=True)
        )
        if not fits:
            raise ValueError(f"output {name!r} has shape {list(array.shape)}, config.pbtxt promises {expected}")

    def _signature(self, entries, nodes, what):
        """{name: (dims, numpy type)} of config.pbtxt's inputs or outputs, each proven to be in the ONNX file."""
        found = {node.name: node for node in nodes}
        out = {}
        for entry in entries:
            name, kind = entry["name"], entry["data_type"]
            if name not in found:
                raise self._error(f"config.pbtxt names {what} {name!r}; the ONNX file has {sorted(found)}")
            if kind not in TYPES:
                raise self._error(f"{what} {name!r} is {kind}: this backend serves numbers only")
            if entry.get("reshape"):
                raise self._error(f"{what} {name!r} has a reshape: give the dims of the ONNX file instead")
            node_type, dtype = TYPES[kind]
            if found[name].type != node_type:
                raise self._error(f"{what} {name!r} is {kind} in config.pbtxt and {found[name].type} in the ONNX file")
            dims = [int(d) for d in entry["dims"]]
            self._compare(what, name, dims, found[name].shape)
            out[name] = (dims, dtype)
        return out

    def _compare(self, what, name, dims, shape):
        """config.pbtxt's dims (with the batch dim put in front) against the ONNX file's; a named dim fits anything."""
        full = ([-1] if self.max_batch else []) + dims
        fixed = [d if isinstance(d, int) else -1 for d in shape]
        # A model with a batch size needs an ONNX file whose first dim is free.
        good = len(full) == len(fixed) and all(f in (d, -1) for d, f in zip(full, fixed, strict=True))
        if not good:
            raise self._error(
                f"{what} {name!r} has dims {full} by config.pbtxt (max_batch_size {self.max_batch}) and {fixed} in "
                "the ONNX file"
            )

    def _options(self, config):
        """onnxruntime's session options from the parameters that the C++ backend knows too."""
        parameters = {key: value.get("string_value", "") for key, value in config.get("parameters", {}).items()}

        def number(key):
            text = parameters.get(key, "0") or "0"
            if not text.isdigit():
                raise self._error(f"parameter {key} is {text!r}; give a whole number, 0 or more")
            return int(text)

        options = ort.SessionOptions()
        options.intra_op_num_threads = number("intra_op_thread_count")
        options.inter_op_num_threads = number("inter_op_thread_count")
        if number("execution_mode") == 1:
            options.execution_mode = ort.ExecutionMode.ORT_PARALLEL
        level = int(config.get("optimization", {}).get("graph", {}).get("level", 0))
        options.graph_optimization_level = GRAPH_LEVELS.get(level, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)
        return options

    def _error(self, message):
        return pb_utils.TritonModelException(f"{self.name}: {message}")

    def _failure(self, exc):
        message = f"{self.name}: {exc}"
        return pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(message))
