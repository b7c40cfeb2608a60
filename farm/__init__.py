"""Control plane of the engine farm: submissions, jobs, registry, client.

Nothing below this package imports torch, onnx, onnxruntime or tensorrt; the data
plane in ``workers`` does.
"""

__version__ = "0.1.0"
