"""The parts of ONNX that the farm knows: domains, opsets, operators."""

from __future__ import annotations

#: Domains whose operators all of the farm's runtimes know.
STANDARD_DOMAINS = ("", "ai.onnx")


#: The domain of ONNX Runtime's own operators, which no other runtime has.
ONNXRUNTIME_DOMAIN = "com.microsoft"


#: The first opset whose Q/DQ allow fp16 scales; older models are upgraded to it.
MIN_OPSET = 19
