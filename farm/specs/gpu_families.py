"""Chips that exist and have no tag here: families too old to build for, products known by their compute
capability alone, and what isn't NVIDIA's.
"""

from __future__ import annotations

import re

#: Compute capabilities before the farm's first: their architecture. Source: NVIDIA's table of legacy GPUs.
OLD: dict[str, str] = {
    "sm_20": "Fermi",
    "sm_21": "Fermi",
    "sm_30": "Kepler",
    "sm_32": "Kepler",
    "sm_35": "Kepler",
    "sm_37": "Kepler",
    "sm_50": "Maxwell",
    "sm_52": "Maxwell",
    "sm_53": "Maxwell",
    "sm_60": "Pascal",
    "sm_61": "Pascal",
    "sm_62": "Pascal",
    "sm_70": "Volta",
    "sm_72": "Volta",
}
#: Compute capability → its products without a tag, in lower-case letters and digits. Source: NVIDIA's tables
#: of CUDA GPUs and of legacy ones.
_PRODUCTS: dict[str, str] = {
    "sm_20": r"gtx[45]\d0(ti)?|[cms]20[57]0|m2090",
    "sm_30": r"k10|gt6\d0|gtx6\d0(ti)?|gtx7[67]0|quadrok\d{1,4}m?",
    "sm_35": r"k20[cmx]?|k40[cmst]?|gt7\d0|gtx780(ti)?|gtxtitan(black|z)?|titan(black|z)?",
    "sm_37": r"k80",
    "sm_50": r"m10|gtx7[45]0(ti)?|quadrom\d{1,4}m?",
    "sm_52": r"m4|m6|m40|m60|gtx9\d0(ti|m)?|(gtx)?titanx",
    "sm_53": r"(jetson)?tx1|jetsonnano",
    "sm_60": r"p100|(quadro)?gp100",
    "sm_61": r"p4|p6|p40|(gt|gtx)10\d0(ti)?|(gtx)?titan(x?p|xpascal)|mx[123]50|quadrop\d{1,4}m?",
    "sm_62": r"(jetson)?tx2",
    "sm_70": r"v100s?|titanv|(quadro)?gv100",
    "sm_72": r"(jetson)?(agx)?xavier(nx)?",
    "sm_75": r"t4g|titanrtx|gtx16[356]0(ti|super)?|mx450|(quadro)?t\d{3,4}|rtx20[678]0super|"
    r"quadrortx[3-8]000",
    "sm_80": r"a800|a100x|a30x",
    "sm_86": r"rtx30[56789]0(ti|super)?|(rtx)?a[2-6]000|(rtx)?a4500|(rtx)?a5500",
    "sm_87": r"(jetson)?(agx)?orin(nano|nx)?",
    "sm_89": r"l2|l20|l40g|rtx40[56789]0(d|ti|super|tisuper)?|(rtx)?[2456][05]00ada",
    "sm_90": r"h20|h800",
    "sm_110": r"(jetson)?(agx)?thor",
    "sm_120": r"rtx50[56789]0(d|ti)?|rtxpro[2456][05]00(blackwell)?",
}
#: What a product's name may begin and end with.
_FRAME = r"(nvidia)?(geforce|tesla)?({})(sxm\d?|pcie|hbm\d?e?|maxq|laptop|mobile|gpu|\d{{1,3}}gb)*"
_FOREIGN: dict[str, str] = {
    "an AMD GPU": r"(amd)?(radeon.*|(instinct)?mi\d{2,3}[ax]?|rx\d{3,4}(xtx?|gre)?|gfx\d+)",
    "an Intel device": r"(intel)?(arc[ab]?\d*|gaudi\d?|hpu|xpu|npu|iris.*|datacentergpu.*)",
    "an Apple chip": r"(apple)?(m[1235]|m\d(pro|max|ultra)|mps|metal)",
    "a TPU": r"(google|cloud)?tpu(v\d[ep]?)?",
}


def of(squeezed: str) -> str | None:
    """The compute capability of a product, by its name in lower-case letters and digits."""
    return next(
        (tag for tag, of in _PRODUCTS.items() if re.fullmatch(_FRAME.format(of), squeezed)), None
    )


def foreign(squeezed: str) -> str | None:
    """What a device is that isn't NVIDIA's: ``an AMD GPU``."""
    return next((what for what, of in _FOREIGN.items() if re.fullmatch(of, squeezed)), None)
