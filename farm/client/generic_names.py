"""Names that don't tell one model from another: what exporters, hubs and trainers call every file."""

from __future__ import annotations

import re

#: What every model is called.
_ANY_MODEL = frozenset(
    """
    model pytorch torch keras tensorflow tf onnx ort openvino safetensors torchscript savedmodel saved
    weights checkpoint checkpoints ckpt network net export exported exports output outputs converted
    best last final latest index main default from snapshot snapshots
    graph jit fx graphmodule tf2onnx paddle paddlepaddle mxnet sequential functional diffusion
    """.split()
)
#: What is added to such a name: a precision, a shard, a step of the training.
_VARIANT = frozenset(
    """
    fp32 fp16 bf16 fp8 int8 uint8 int4 float32 float16 half q4 q8 q4f16 bnb4 quant quantized quantised
    optimized optimised opt simplified sim slim dynamic static fused of epoch step ema variables
    """.split()
)
#: One graph of several that make a model: added to the model's name, since each is a model of its own.
_PART = frozenset(
    """
    encoder decoder with past merged text vision image audio prompt mask embed embeddings tokens
    unet vae transformer joiner predictor generator discriminator backbone head
    """.split()
)
#: Folders in which all sorts of models lie.
_PLACES = frozenset(
    """
    app artifacts blobs build cache content data desktop dist documents download downloads files home hub
    input kaggle media mlruns mnt models opt root runs src srv temp tmp train uploads users usr var work
    working workspace
    """.split()
)
_NUMBER = re.compile(r"v?\d+")
_HASH = re.compile(r"[0-9a-f]{12,}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def is_generic(name: str) -> bool:
    """Whether a name is one that any model's file may have: ``model_fp16``, ``model-00001-of-00002``."""
    return bool(_HASH.fullmatch(name.lower())) or all(map(_is_generic_word, words(name)))


def is_place(folder: str) -> bool:
    """Whether a folder is one for all sorts of files, so that nothing above it tells of a model either."""
    return folder.lower() in _PLACES


def parts(name: str) -> list[str]:
    """The words of a generic name that tell which part of a model it is.

    ``decoder_with_past_model`` → decoder, with, past; ``text_encoder_2`` → text, encoder, 2.
    """
    found: list[str] = []
    follows = False
    for word in words(name):
        follows = _stem(word) in _PART or (follows and word.isdecimal())
        if follows:
            found.append(word)
    return found


def words(name: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", name.lower())


def _is_generic_word(word: str) -> bool:
    return bool(
        _NUMBER.fullmatch(word)
        or word in _ANY_MODEL | _VARIANT
        or _stem(word) in _ANY_MODEL | _PART
    )


def _stem(word: str) -> str:
    """A word without its number: ``model2``, ``encoder1``."""
    return word.rstrip("0123456789")
