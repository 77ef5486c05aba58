"""The encoders of images of DeepSeek-OCR: SAM's, and after it CLIP's or, in the second, layers of
Qwen2. llama.cpp: `conversion/deepseek.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from quantkit.architectures.rules import Config, Key, Map, vector, whole
from quantkit.encoders.common import (
    DIMS,
    KERNELS,
    KINDS,
    VISION,
    VISION_KEYS,
    V,
    eps,
    flag,
    lin,
    positions,
    projector,
    scale_factor,
    told,
    vision,
    width,
)
from quantkit.encoders.rules import Encoder

S = "model.sam_model"
SB = f"{S}.blocks.{{bid}}"
SV = "v.sam.blk.{bid}"
SAM = f"{VISION}.width.sam_vit_b"
C = "model.vision_model"
CB = f"{C}.transformer.layers.{{bid}}"
_CLIP = f"{VISION}.width.clip-l-14-224"


def _sam(name: str) -> Callable[[Config], int]:
    return lambda c: c.one(f"{SAM}.{name}")


def _clip(name: str) -> Callable[[Config], Any]:
    """A number of CLIP's table, or what stands outside."""

    def read(config: Config) -> Any:
        own = config.find(f"{_CLIP}.{name}")
        return own if own is not None else config.find(f"{VISION}.{name}")

    return read


def _width(config: Config) -> int | None:
    found = _clip("width")(config)
    return found if isinstance(found, int) else None


def _fourfold(config: Config) -> int | None:
    """What llama.cpp's converter writes for the width of an MLP; its runtime takes the tensors'."""
    heads = _clip("heads")(config)
    return 4 * heads if isinstance(heads, int) else None


def _keys(kind: str, most: int) -> tuple[Key, ...]:
    """All keys of a projector of that kind, which takes so many tiles of an image at most."""
    return (
        *VISION_KEYS,
        projector(kind),
        eps(vision("layer_norm_eps")),
        flag("clip.use_gelu"),
        scale_factor(),
        Key("clip.vision.window_size", vision("window_size"), default=14),
        Key("clip.vision.preproc_min_tiles", lambda c: 2),
        Key("clip.vision.preproc_max_tiles", lambda c: most),
        Key("clip.vision.sam.block_count", _sam("layers")),
        Key("clip.vision.sam.embedding_length", _sam("width")),
        Key("clip.vision.sam.head_count", _sam("heads")),
    )


def _reach(config: Config) -> list[int]:
    """Rows of the tables of distances, which are more in the layers that see all of an image."""
    n = max(config.layers, 1)
    names = [f"{S}.blocks.{bid}.attn.rel_pos_h" for bid in range(_sam("layers")(config))]
    found = [config.values["shapes"].get(name, [1])[0] for name in names]
    return [*found, *[1] * (n - len(found))]


SAM_MAPS = (
    Map(f"{S}.pos_embed", ("one", "grid", "grid", "sam"), whole("v.sam.pos_embd.weight")),
    *lin(f"{S}.patch_embed.proj", ("sam", "three", "sam_patch", "sam_patch"), "v.sam.patch_embd",
         ""),
    *lin(f"{SB}.norm1", ("sam",), f"{SV}.pre_ln", "sam"),
    *lin(f"{SB}.norm2", ("sam",), f"{SV}.post_ln", "sam"),
    *lin(f"{SB}.attn.qkv", ("3sam", "sam"), f"{SV}.attn.qkv", "sam"),
    *lin(f"{SB}.attn.proj", ("sam", "sam"), f"{SV}.attn.out", "sam"),
    *(
        Map(f"{SB}.attn.rel_pos_{axis}", ("reach", "sam_head"),
            whole(f"{SV}.attn.pos_{axis}.weight"), "sam")
        for axis in "hw"
    ),
    *lin(f"{SB}.mlp.lin1", ("4sam", "sam"), f"{SV}.mlp.lin1", "sam"),
    *lin(f"{SB}.mlp.lin2", ("sam", "4sam"), f"{SV}.mlp.lin2", "sam"),
    Map(f"{S}.neck.0.weight", ("neck", "sam", "one", "one"), whole("v.sam.neck.0.weight")),
    *lin(f"{S}.neck.1", ("neck",), "v.sam.neck.1", ""),
    Map(f"{S}.neck.2.weight", ("neck", "neck", "three", "three"), whole("v.sam.neck.2.weight")),
    *lin(f"{S}.neck.3", ("neck",), "v.sam.neck.3", ""),
    Map(f"{S}.net_2.weight", ("net2", "neck", "three", "three"), whole("v.sam.net_2.weight")),
    Map(f"{S}.net_3.weight", ("net3", "net2", "three", "three"), whole("v.sam.net_3.weight")),
)  # fmt: skip
_REST = (
    *lin("model.projector.layers", ("text", "joined"), "mm.model.fc", ""),
    Map("model.image_newline", ("text",), whole("v.image_newline"), optional=True),
    Map("model.view_seperator", ("text",), whole("v.view_seperator", "one", "text")),
)
_FORCED = (
    (r"v\.sam\.(pos_embd|neck\.\d|net_\d|blk\.\d+\.attn\.pos_[hw])\.weight", "F32"),
    (r"v\.sam\.patch_embd\.weight", "kernel"),
)

DEEPSEEK_OCR = Encoder(
    hf_names=("DeepseekOCRForCausalLM",),
    gguf_arch="clip",
    keys=_keys("deepseekocr", 9),
    late_keys=(),
    expects=(),
    dims={
        **DIMS,
        "three": lambda c: 3,
        "v": width("hidden_size"),
        "3v": lambda c: 3 * c.one(*vision("hidden_size")),
        "clip_ffn": told(f"{C}.transformer.layers.0.mlp.fc1.weight"),
        "positions": lambda c: positions(c) + 1,
        "joined": told("model.projector.layers.weight", 1),
        "sam": _sam("width"),
        "3sam": lambda c: 3 * _sam("width")(c),
        "4sam": lambda c: 4 * _sam("width")(c),
        "sam_head": lambda c: _sam("width")(c) // max(_sam("heads")(c), 1),
        "sam_patch": told(f"{S}.patch_embed.proj.weight", 2),
        "grid": told(f"{S}.pos_embed", 1),
        "reach": _reach,
        "neck": told(f"{S}.neck.0.weight"),
        "net2": told(f"{S}.net_2.weight"),
        "net3": told(f"{S}.net_3.weight"),
    },
    layers={**KINDS, "sam": lambda c, bid: bid < _sam("layers")(c)},
    maps=(
        *SAM_MAPS,
        *_REST,
        Map(f"{C}.embeddings.class_embedding", ("v",), whole("v.class_embd")),
        Map(f"{C}.embeddings.patch_embedding.weight", ("v", "channels", "patch", "patch"),
            whole("v.patch_embd.weight")),
        Map(f"{C}.embeddings.position_embedding.weight", ("positions", "v"),
            whole("v.position_embd.weight")),
        *lin(f"{C}.pre_layrnorm", ("v",), "v.pre_ln", ""),
        *lin(f"{CB}.layer_norm1", ("v",), f"{V}.ln1"),
        *lin(f"{CB}.layer_norm2", ("v",), f"{V}.ln2"),
        *lin(f"{CB}.self_attn.qkv_proj", ("3v", "v"), f"{V}.attn_qkv"),
        *lin(f"{CB}.self_attn.out_proj", ("v", "v"), f"{V}.attn_out"),
        *lin(f"{CB}.mlp.fc1", ("clip_ffn", "v"), f"{V}.ffn_up"),
        *lin(f"{CB}.mlp.fc2", ("v", "clip_ffn"), f"{V}.ffn_down"),
    ),
    drops=(r"(lm_head|model\.(embed_tokens|layers|norm))\..*", r".*\.position_ids"),
    aliases={
        **{f"{VISION}.{name}": _clip(name) for name in ("image_size", "patch_size", "layers")},
        f"{VISION}.hidden_size": _width,
        f"{VISION}.num_heads": _clip("heads"),
        f"{VISION}.intermediate_size": _fourfold,
    },
    forced=((r"v\.(patch_embd|position_embd)\.weight", "F32"), *_FORCED, *KERNELS),
)  # fmt: skip

UNLIMITED_OCR = replace(
    DEEPSEEK_OCR,
    hf_names=("UnlimitedOCRForCausalLM",),
    keys=_keys("deepseekocr", 32),
)

Q = "model.qwen2_model"
QB = f"{Q}.model.model.layers.{{bid}}"
_QWEN = {"layers": 24, "patch_size": 16, "intermediate_size": 4864, "num_attention_heads": 14}


def _head(config: Config) -> int:
    return config.one(*vision("hidden_size")) // max(config.one(*vision("num_attention_heads")), 1)


def _or(name: str, default: int) -> Callable[[Config], int]:
    return lambda c: c.one(*vision(name), default=default)


DEEPSEEK_OCR2 = replace(
    DEEPSEEK_OCR,
    hf_names=("DeepseekOCR2ForCausalLM",),
    keys=(
        *_keys("deepseekocr2", 6),
        Key("clip.vision.attention.head_count_kv", lambda c: 2),
    ),
    dims={
        **{n: d for n, d in DEEPSEEK_OCR.dims.items() if n not in ("clip_ffn", "positions")},
        "q": lambda c: _head(c) * c.one(*vision("num_attention_heads")),
        "kv": lambda c: 2 * _head(c),
        "low": told(f"{Q}.query_768.weight"),
        "high": told(f"{Q}.query_1024.weight"),
        "ffn": told(f"{Q}.model.model.layers.0.mlp.up_proj.weight"),
    },
    maps=(
        *SAM_MAPS,
        *_REST,
        vector(f"{QB}.input_layernorm", f"{V}.ln1", "v", "vision"),
        vector(f"{QB}.post_attention_layernorm", f"{V}.ln2", "v", "vision"),
        *lin(f"{QB}.self_attn.q_proj", ("q", "v"), f"{V}.attn_q"),
        *lin(f"{QB}.self_attn.k_proj", ("kv", "v"), f"{V}.attn_k"),
        *lin(f"{QB}.self_attn.v_proj", ("kv", "v"), f"{V}.attn_v"),
        *lin(f"{QB}.self_attn.o_proj", ("v", "q"), f"{V}.attn_out", "vision", False),
        *lin(f"{QB}.mlp.gate_proj", ("ffn", "v"), f"{V}.ffn_gate", "vision", False),
        *lin(f"{QB}.mlp.up_proj", ("ffn", "v"), f"{V}.ffn_up", "vision", False),
        *lin(f"{QB}.mlp.down_proj", ("v", "ffn"), f"{V}.ffn_down", "vision", False),
        vector(f"{Q}.model.model.norm", "v.post_ln", "v"),
        *lin(f"{Q}.query_768", ("low", "v"), "v.resample_query_768", "", False),
        *lin(f"{Q}.query_1024", ("high", "v"), "v.resample_query_1024", "", False),
    ),
    aliases={
        **{
            f"{VISION}.{name}": _or(name, n)
            for name, n in _QWEN.items()
        },
        f"{VISION}.hidden_size": f"{VISION}.width.qwen2-0-5b.dim",
    },
    forced=(*_FORCED, *KERNELS),
)  # fmt: skip

FAMILY = (DEEPSEEK_OCR, UNLIMITED_OCR, DEEPSEEK_OCR2)
