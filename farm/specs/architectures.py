"""Allow-list of architectures for safetensors weights, by library and class.

It also says what each class takes, so that a submission is refused before anything is imported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Literal

Takes = Literal["text", "image", "sound"]

_TEXT = """
AlbertForSequenceClassification AlbertModel BertForMaskedLM BertForQuestionAnswering
BertForSequenceClassification BertForTokenClassification BertModel CLIPTextModel
DebertaV2ForSequenceClassification DebertaV2Model DistilBertForQuestionAnswering
DistilBertForSequenceClassification DistilBertModel ElectraForSequenceClassification ElectraModel
GPT2LMHeadModel GPT2Model LlamaForCausalLM LlamaModel MPNetForSequenceClassification MPNetModel
OPTForCausalLM OPTModel Qwen2ForCausalLM Qwen2Model RobertaForQuestionAnswering
RobertaForSequenceClassification RobertaForTokenClassification RobertaModel T5EncoderModel
XLMRobertaForSequenceClassification XLMRobertaModel
"""
_IMAGE = """
BeitForImageClassification BeitModel CLIPVisionModel ConvNextForImageClassification ConvNextModel
DeiTForImageClassification DeiTModel Dinov2ForImageClassification Dinov2Model
EfficientNetForImageClassification MobileNetV2ForImageClassification RegNetForImageClassification
ResNetForImageClassification ResNetModel SegformerForImageClassification
SwinForImageClassification SwinModel ViTForImageClassification ViTModel
"""
_SOUND = """
ASTForAudioClassification ASTModel HubertModel Wav2Vec2Model WhisperEncoder
"""
_TIMM = """
convnext_base convnext_small convnext_tiny deit_base_patch16_224 deit_small_patch16_224
densenet121 efficientnet_b0 efficientnet_b1 efficientnet_b2 efficientnet_b3 efficientnet_lite0
inception_v3 mixer_b16_224 mobilenetv2_100 mobilenetv3_large_100 mobilenetv3_small_100 regnety_016
regnety_032 resnet18 resnet34 resnet50 resnet101 resnet152 resnext50_32x4d seresnet50
swin_tiny_patch4_window7_224 tf_efficientnetv2_s vgg16 vit_base_patch16_224
vit_large_patch16_224 vit_small_patch16_224 vit_tiny_patch16_224 wide_resnet50_2
"""
_TORCHVISION = """
alexnet convnext_base convnext_small convnext_tiny densenet121 efficientnet_b0 efficientnet_b1
efficientnet_v2_s googlenet inception_v3 mobilenet_v2 mobilenet_v3_large mobilenet_v3_small
regnet_y_16gf regnet_y_400mf resnet18 resnet34 resnet50 resnet101 resnet152 resnext50_32x4d
shufflenet_v2_x1_0 squeezenet1_1 swin_t swin_v2_t vgg16 vgg16_bn vit_b_16 vit_l_16 wide_resnet50_2
"""


def _names(text: str, takes: Takes) -> dict[str, Takes]:
    return dict.fromkeys(text.split(), takes)


#: Library → class or factory function → what it takes.
ARCHITECTURES: Mapping[str, Mapping[str, Takes]] = {
    "transformers": _names(_TEXT, "text") | _names(_IMAGE, "image") | _names(_SOUND, "sound"),
    "timm": _names(_TIMM, "image"),
    "torchvision": _names(_TORCHVISION, "image"),
}

#: How often what jobs make of such weights has changed, apart from their stages: raise it instead of the
#: versions of all stages that load sources.
REVISIONS: Mapping[Takes, int] = {"text": 1}

#: Configuration fields that select code, files or hubs: refused.
_CHOOSE_CODE = frozenset(
    """
    auto_map custom_pipelines trust_remote_code quantization_config attn_implementation
    _attn_implementation _attn_implementation_internal experts_implementation
    _experts_implementation use_kernels hub_kernel_config custom_generate backbone
    backbone_config use_timm_backbone
    use_pretrained_backbone pretrained pretrained_cfg pretrained_cfg_overlay checkpoint_path weights
    weights_backbone cache_dir scriptable exportable
    """.split()
)
#: Configuration fields that timm's and torchvision's functions accept.
FUNCTION_FIELDS = frozenset({"num_classes", "in_chans", "img_size", "image_size", "drop_rate"})


#: Allowed weight types; any other name would be looked up in torch.
_DTYPES = (None, "float16", "bfloat16", "float32", "float64")
_MAX_LAYERS = 1024
_MAX_DEPTH = 8


def _fields(config: Mapping[str, object], depth: int = 0) -> Iterator[tuple[str, object]]:
    """Each field's name and value, including nested configurations."""
    for name, value in config.items():
        yield name, value
        if isinstance(value, Mapping) and depth < _MAX_DEPTH:
            yield from _fields(value, depth + 1)


def _is_too_deep(name: str, value: object) -> bool:
    counts = value if isinstance(value, list) else [value]
    is_count = "layers" in name or "depth" in name
    return is_count and any(isinstance(n, int | float) and n > _MAX_LAYERS for n in counts)


def refusal(library: str, name: str, config: Mapping[str, object]) -> str | None:
    """Why the farm refuses this module, or None."""
    known = ARCHITECTURES[library]
    if name not in known:
        close = get_close_matches(name, known, n=5, cutoff=0.3) or list(known)[:5]
        return f"the farm doesn't support {library}'s {name!r}; it supports {', '.join(close)}, …"
    given = list(_fields(config))
    fields = sorted({name for name, value in given if name in _CHOOSE_CODE and value})
    if fields:
        return f"the configuration's {', '.join(fields)} would select code to run"
    for field, value in given:
        if field.startswith("__"):
            return f"the configuration's {field[:40]!r} isn't a valid field"
        if field in ("dtype", "torch_dtype") and value not in _DTYPES:
            return f"the configuration's {field} isn't one of {', '.join(map(str, _DTYPES[1:]))}"
        if _is_too_deep(field, value):
            return f"the configuration's {field[:40]} is over {_MAX_LAYERS}"
    others = sorted(config.keys() - FUNCTION_FIELDS) if library != "transformers" else []
    if others:
        return f"{library} takes {', '.join(sorted(FUNCTION_FIELDS))} here, not {', '.join(others)}"
    return None
