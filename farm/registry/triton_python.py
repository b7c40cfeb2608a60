"""The ``model.py`` with which Triton's Python backend serves an engine of ONNX Runtime for CPUs.

It imports numpy and onnxruntime alone, and is the same for every engine: ``config.pbtxt`` says which.
"""

from __future__ import annotations

MODEL_FILE = "model.py"
ENGINE = "engine"  #: the parameter with the engine's file

MODEL_PY = '''\
"""Runs an engine in ONNX Runtime on this machine's CPUs, a batch of requests at once."""

import json
import os

import numpy
import onnxruntime
import triton_python_backend_utils as triton


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        folder = os.path.join(args["model_repository"], args["model_version"])
        engine = os.path.join(folder, config["parameters"]["engine"]["string_value"])
        self.session = onnxruntime.InferenceSession(engine, providers=["CPUExecutionProvider"])
        self.inputs = [one["name"] for one in config["input"]]
        self.scalars = {one.name for one in self.session.get_inputs() if not one.shape}
        self.outputs = [one["name"] for one in config["output"]]
        self.batches = config["max_batch_size"] > 0

    def execute(self, requests):
        groups = [requests] if self.batches else [[request] for request in requests]
        return [response for group in groups for response in self.answer(group)]

    def answer(self, requests):
        try:
            given = [self.arrays(request) for request in requests]
            if len(given) == 1:
                return [self.response(self.run(given[0]))]
            ends = numpy.cumsum([len(one[self.inputs[0]]) for one in given])[:-1]
            stacked = {name: numpy.concatenate([one[name] for one in given]) for name in given[0]}
            split = [numpy.split(output, ends) for output in self.run(stacked)]
            return [self.response(parts) for parts in zip(*split)]
        except Exception as error:
            if len(requests) > 1:  # one of them may be at fault: the others aren't to suffer
                return [response for request in requests for response in self.answer([request])]
            failed = triton.TritonError(f"{type(error).__name__}: {error}")
            return [triton.InferenceResponse(error=failed)]

    def arrays(self, request):
        tensors = [triton.get_input_tensor_by_name(request, name) for name in self.inputs]
        return {tensor.name(): self.array(tensor) for tensor in tensors}

    def array(self, tensor):
        # Not as_numpy: from a Triton built before numpy 2 it would be an array of another layout.
        array = numpy.from_dlpack(tensor)
        return array.reshape(()) if tensor.name() in self.scalars else array

    def run(self, arrays):
        return self.session.run(self.outputs, arrays)

    def response(self, outputs):
        named = zip(self.outputs, outputs)
        return triton.InferenceResponse([self.tensor(name, array) for name, array in named])

    def tensor(self, name, array):
        # Triton has no scalars, and takes what lies in a row.
        return triton.Tensor.from_dlpack(name, numpy.ascontiguousarray(numpy.atleast_1d(array)))

    def finalize(self):
        self.session = None
'''
