"""What of a log is noise, and is folded; nothing of it is lost."""

from __future__ import annotations

import pytest

from farm.builds.folds import Noise, Part, folded

P, R, W = Noise.PROGRESS, Noise.REPEATED, Noise.WARNINGS
PLAIN = None

BAR = "Calibrating:  40%|████      | 2/5 [00:01<00:02,  1.2it/s]"
USER_WARNING = "/lib/torch/onnx/utils.py:847: UserWarning: no signature found"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", []),
        ("one line", [(PLAIN, ["one line"])]),
        ("a\n\nb\n", [(PLAIN, ["a", "", "b"])]),
        (f"begin\n{BAR}\n{BAR}\nend\n", [(PLAIN, ["begin"]), (P, [BAR, BAR]), (PLAIN, ["end"])]),
        (f"{BAR}\n", [(PLAIN, [BAR])]),  # nothing to fold
        (
            "\r 10%|#    | 1/9\r 90%|#### | 8/9\ndone\n",
            [(P, [" 10%|#    | 1/9", " 90%|#### | 8/9"]), (PLAIN, ["done"])],
        ),
        ("[=====>    ] 3/7\n[=======>  ] 5/7\n", [(P, ["[=====>    ] 3/7", "[=======>  ] 5/7"])]),
        ("40 %\n80.5 %\n", [(P, ["40 %", "80.5 %"])]),
        ("99.8 % of the outputs agree\n", [(PLAIN, ["99.8 % of the outputs agree"])]),
        ("layer 1\nlayer 2\n", [(PLAIN, ["layer 1", "layer 2"])]),
        (
            "a\nlayer 1\nlayer 22\nlayer 3.5\n",
            [(PLAIN, ["a"]), (R, ["layer 1", "layer 22", "layer 3.5"])],
        ),
        ("\n\n\n\n", [(PLAIN, ["", "", "", ""])]),
        (
            f"{USER_WARNING}\n  warnings.warn(x)\nexported\n",
            [(W, [USER_WARNING, "  warnings.warn(x)"]), (PLAIN, ["exported"])],
        ),
        (f"exported\n  {USER_WARNING}", [(PLAIN, ["exported", f"  {USER_WARNING}"])]),
        ("W1128 01:02:03.4 1 x.cc:5] slow\n", [(W, ["W1128 01:02:03.4 1 x.cc:5] slow"])]),
        (
            "2026-11-28 [W:onnxruntime:, a.cc:5] b\n",
            [(W, ["2026-11-28 [W:onnxruntime:, a.cc:5] b"])],
        ),
        ("WARNING: the GPU is shared\n", [(W, ["WARNING: the GPU is shared"])]),
        (
            "2026-11-28 01:02:03,4 - [modelopt][onnx] - WARNING - b\n",
            [(W, ["2026-11-28 01:02:03,4 - [modelopt][onnx] - WARNING - b"])],
        ),
        ("warnings are folded\n", [(PLAIN, ["warnings are folded"])]),
        ("[TRT] [W] no cache\n", [(W, ["[TRT] [W] no cache"])]),
        ("[TRT] [E] no memory\n", [(PLAIN, ["[TRT] [E] no memory"])]),
        (
            'Traceback (most recent call last):\n  File "a.py", line 1, in f\nValueError: no\n',
            [
                (
                    PLAIN,
                    [
                        "Traceback (most recent call last):",
                        '  File "a.py", line 1, in f',
                        "ValueError: no",
                    ],
                )
            ],
        ),
        ("\x1b[31mred\x1b[0m\n", [(PLAIN, ["red"])]),
        ("a\tb\n", [(PLAIN, ["a       b"])]),
    ],
)
def test_lines_are_shown_or_folded(text, parts):
    found = [(part.noise, list(part.lines)) for part in folded(text)]
    assert found == parts


@pytest.mark.parametrize(
    ("noise", "lines", "summary"),
    [
        (P, [BAR, " 90%|####"], "progress, 2 lines; the last: 90%|####"),
        (R, ["layer 1", "layer 2", "layer 3"], "3 lines like: layer 1"),
        (W, [USER_WARNING, "  x"], f"warning of a library: {USER_WARNING}"),
        (
            W,
            ["WARNING: a", "WARNING: b", "W1128 c"],
            "warning of a library, and 2 more: WARNING: a",
        ),
    ],
)
def test_a_fold_says_what_is_in_it(noise, lines, summary):
    assert Part(lines=lines, noise=noise).summary == summary


def test_every_line_is_in_some_part():
    lines = [
        BAR,
        "x",
        "x",
        "x",
        USER_WARNING,
        "  source",
        "error: no",
        *(f"step {n}" for n in range(9)),
    ]
    assert [line for part in folded("\n".join(lines)) for line in part.lines] == lines
