"""What llama.cpp's mtmd asks of the encoders that it loads beside a model (`--mmproj`).

Sources, all of llama.cpp b11549: `tools/mtmd/clip.cpp` (load_hparams, load_tensors), the graphs of
`tools/mtmd/models/*.cpp`, `tools/mtmd/mtmd.cpp`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from quantkit.gguf.container import KeyValue
from quantkit.loading.values import Info

_INT32_MAX = (1 << 31) - 1
_LARGEST_IMAGE = 8192
_MERGES = ("spatial_merge_size", "projector.scale_factor")

# clip-impl.h, PROJECTOR_TYPE_NAMES
TYPES = frozenset({
    "mlp", "ldp", "ldpv2", "resampler", "adapter", "qwen2vl_merger", "qwen2.5vl_merger",
    "qwen3vl_merger", "ling3vl", "step3vl", "gemma3", "gemma3nv", "gemma3na", "gemma4v", "gemma4a",
    "gemma4uv", "gemma4ua", "phi4", "idefics3", "pixtral", "ultravox", "internvl", "llama4",
    "qwen2a", "qwen3a", "glma", "qwen2.5o", "voxtral", "meralion", "musicflamingo", "lfm2",
    "d1omni_v", "kimivl", "paddleocr", "lightonocr", "cogvlm", "janus_pro", "dots_ocr",
    "dots3note_v", "dots3note_a", "deepseekocr", "deepseekocr2", "deepseek4v", "lfm2a", "d1omni_a",
    "glm4v", "glm5v", "youtuvl", "yasa2", "kimik25", "nemotron_v2_vl", "exaone4_5", "hunyuanvl",
    "minicpmv4_6", "granite_speech", "mimovl", "minimax_m3", "granite4_vision", "mimo_audio",
    "parakeet", "qwen3tts_spkenc", "qwen3tts_gen", "pockettts_spkenc", "pockettts_gen",
    "muse-glimmer", "cohere2v",
})  # fmt: skip
_OMNI = {("qwen2.5o", "vision"): "qwen2.5vl_merger", ("qwen2.5o", "audio"): "qwen2a"}
# whose layers are not those of a vision transformer
_OTHER_LAYERS = frozenset({"gemma3nv", "qwen3tts_spkenc", "pockettts_gen"})


class Needs(NamedTuple):
    """What one kind of projector has beside what all have: tensors, tensors in each layer, keys of
    integers. `rows`: how many rows the table of positions has beyond one a patch, None where it is
    scaled to the image."""

    tensors: tuple[str, ...]
    in_layers: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    rows: int | None = None


def _both(*names: str) -> tuple[str, ...]:
    return tuple(f"{name}.{end}" for name in names for end in ("weight", "bias"))


_PATCH = "v.patch_embd.weight"
_QKV = ("attn_q.weight", "attn_k.weight", "attn_v.weight")
_CONFORMER = (
    *_QKV, "ffn_norm.weight", "conv_pw1.weight", "conv_dw.weight", "conv_pw2.weight",
    "ffn_norm_1.weight", "ffn_up_1.weight", "ffn_down_1.weight",
)  # fmt: skip
_MOVES = (
    *_both("ffn_norm", "ffn_norm_1", "ffn_up_1", "ffn_down_1", "norm_conv", "conv_norm",
           "conv_pw1", "conv_pw2"),
    "conv_dw.weight",
)  # fmt: skip
_NEMO = (*_QKV, *_MOVES, "conv_dw.bias", "linear_pos.weight", "pos_bias_u", "pos_bias_v")
_QFORMER = _both(
    *(f"{part}_attn_{of}" for part in ("self", "cross") for of in ("q", "k", "v", "out", "norm")),
    "ffn_up", "ffn_down", "ffn_norm",
)  # fmt: skip
_SPECTRUM = _both(*(f"a.conv1d.{at}" for at in (0, 2, 3, 5, 6)), "a.pre_encode.out")
_WAVES = _both("a.conv1d.1", "a.conv1d.2")
_SAM = (
    "v.sam.pos_embd.weight", *_both("v.sam.patch_embd", "v.sam.neck.1", "v.sam.neck.3"),
    "v.sam.neck.0.weight", "v.sam.neck.2.weight", "v.sam.net_2.weight", "v.sam.net_3.weight",
    "v.view_seperator", *_both("mm.model.fc"),
)  # fmt: skip
NEEDS = {
    "gemma3": Needs(
        (_PATCH, "mm.input_projection.weight", "mm.soft_emb_norm.weight"), _QKV, rows=0
    ),
    "gemma3nv": Needs(("mm.input_projection.weight", "mm.soft_emb_norm.weight")),
    "lfm2a": Needs(
        (*_SPECTRUM, *_both(*(f"mm.a.mlp.{at}" for at in (0, 1, 3))), "a.position_embd.weight"),
        _NEMO,
    ),
    "d1omni_a": Needs(
        (*_SPECTRUM, *_both(*(f"mm.a.mlp.{at}" for at in (0, 1, 3, 4, 5, 6)))), _NEMO
    ),
    "d1omni_v": Needs((_PATCH, "v.position_embd.weight", *_both("mm.1", "mm.2")), _QKV),
    "granite_speech": Needs(
        (*_both("a.input_projection", "a.enc_ctc_out", "a.enc_ctc_out_mid", "a.proj_norm",
                "a.proj_linear"),
         "a.proj_query", *(f"a.proj_blk.{at}.{name}" for at in (0, 1) for name in _QFORMER)),
        (*_QKV, *_MOVES, "attn_rel_pos_emb"),
        ("audio.chunk_size", "audio.conv_kernel_size", "audio.max_pos_emb",
         "audio.projector.window_size", "audio.projector.downsample_rate",
         "audio.projector.head_count"),
    ),
    "granite4_vision": Needs(
        (_PATCH, "v.image_newline"),
        _QKV,
        ("vision.projector.query_side", "vision.projector.window_side"),
        rows=0,
    ),
    "gemma4v": Needs((_PATCH, "v.position_embd.weight", "mm.input_projection.weight"), _QKV),
    "gemma4a": Needs(
        ("a.conv1d.0.weight", "a.conv1d.1.weight", "a.input_projection.weight",
         "mm.a.input_projection.weight"),
        _CONFORMER,
    ),
    "gemma4uv": Needs(
        (_PATCH, "v.position_embd.weight", "mm.input_projection.weight",
         *_both("v.patch_norm.1", "v.patch_norm.2", "v.patch_norm.3")),
    ),
    "gemma4ua": Needs(("mm.a.input_projection.weight",)),
    "llama4": Needs(
        (_PATCH, "v.class_embd", "v.position_embd.weight", "mm.model.fc.weight",
         "mm.model.mlp.1.weight", "mm.model.mlp.2.weight"),
        _QKV,
        rows=1,
    ),
    "pixtral": Needs((_PATCH, "mm.1.weight", "mm.2.weight", "v.token_embd.img_break"), _QKV),
    "glm4v": Needs(
        (_PATCH, f"{_PATCH}.1", "v.patch_embd.bias", "mm.model.fc.weight", "mm.up.weight",
         "mm.gate.weight", "mm.down.weight",
         "mm.post_norm.weight", *_both("mm.patch_merger")),
        ("attn_qkv.weight",),
    ),
    "idefics3": Needs((_PATCH, "mm.model.fc.weight"), _QKV, rows=0),
    "lfm2": Needs((_PATCH, "v.position_embd.weight", *_both("mm.1", "mm.2")), _QKV),
    "cohere2v": Needs(
        (_PATCH, *_both("mm.1", "mm.2")),
        _QKV,
        ("vision.projector.scale_factor", "vision.preproc_max_tiles"),
        rows=0,
    ),
    "internvl": Needs(
        (_PATCH, "v.class_embd", "v.position_embd.weight",
         *_both("mm.model.mlp.0", "mm.model.mlp.1", "mm.model.mlp.3")),
        _QKV,
    ),
    "nemotron_v2_vl": Needs(
        (_PATCH, "v.class_embd", "v.position_embd.weight",
         *(f"mm.model.mlp.{at}.weight" for at in (0, 1, 3))),
        ("attn_qkv.weight",),
        rows=0,
    ),
    "parakeet": Needs(
        (*_SPECTRUM, "a.mel_filters", "a.window",
         *(f"mm.model.mlp.{at}.weight" for at in (0, 1, 3))),
        (*_QKV, *_both("ffn_norm", "ffn_norm_1", "norm_conv", "conv_norm"), "conv_norm_mean",
         "conv_norm_var", "conv_pw1.weight", "conv_pw2.weight", "conv_dw.weight",
         "ffn_up_1.weight", "ffn_down_1.weight", "linear_pos.weight", "pos_bias_u", "pos_bias_v"),
        ("audio.subsampling_factor", "audio.conv_kernel_size"),
    ),
    "mimovl": Needs(
        (_PATCH, f"{_PATCH}.1", "mm.0.weight", "mm.2.weight"),
        ("attn_qkv.weight",),
        ("vision.attention.head_count_kv", "vision.window_size"),
    ),
    "mimo_audio": Needs(
        (*_WAVES, "a.downsample.conv.weight", *_both("a.downsample.norm"), "a.rvq.codebook.weight",
         "mm.a.code_embd.weight", "mm.a.local_norm.weight", "mm.a.mlp.1.weight",
         "mm.a.mlp.2.weight"),
        _QKV,
        ("audio.rvq.num_quantizers", "audio.window_size", "audio.local_block_count",
         "audio.local_group_size"),
    ),
    "kimivl": Needs(
        (_PATCH, "v.position_embd.weight", *_both("mm.input_norm", "mm.1", "mm.2")), _QKV
    ),
    "qwen2a": Needs(
        (*_both("a.conv1d.1", "a.conv1d.2", "mm.a.fc"), "a.position_embd.weight"), _QKV
    ),
    "voxtral": Needs(
        (*_both("a.conv1d.1", "a.conv1d.2"), "a.position_embd.weight", "mm.a.mlp.1.weight",
         "mm.a.mlp.2.weight"),
        _QKV,
        ("audio.projector.stack_factor",),
    ),
    "ultravox": Needs(
        (*_WAVES, "mm.a.mlp.1.weight", "mm.a.mlp.2.weight", "mm.a.norm_pre.weight",
         "mm.a.norm_mid.weight"),
        _QKV,
        ("audio.projector.stack_factor",),
    ),
    "meralion": Needs(
        (*_WAVES, *_both(*(f"mm.a.mlp.{i}" for i in range(4)), "mm.a.norm_pre")),
        _QKV,
        ("audio.projector.stack_factor",),
    ),
    "glma": Needs(
        (*_WAVES, *_both("mm.a.mlp.1", "mm.a.mlp.2", "mm.a.norm_pre"), "v.boi", "v.eoi"),
        _QKV,
        ("audio.projector.stack_factor",),
    ),
    "musicflamingo": Needs((*_WAVES, *_both("mm.a.mlp.1", "mm.a.mlp.2")), _QKV),
    "qwen3a": Needs(
        (*_both(*(f"a.conv2d.{i}" for i in (1, 2, 3))), "a.conv_out.weight",
         "a.position_embd.weight", *_both("mm.a.mlp.1", "mm.a.mlp.2")),
        _QKV,
    ),
    "kimik25": Needs(
        (_PATCH, "v.position_embd.weight", *_both("mm.input_norm", "mm.1", "mm.2")),
        ("attn_qkv.weight",),
    ),
    "minimax_m3": Needs(
        (_PATCH, f"{_PATCH}.1", *_both("mm.1", "mm.2", "mm.merger.fc1", "mm.merger.fc2")), _QKV
    ),
    "hunyuanvl": Needs(
        (_PATCH, "v.position_embd.weight", *_both("mm.0", "mm.2", "mm.model.fc"),
         "mm.pre_norm.weight", "mm.post_norm.weight", "mm.image_begin", "mm.image_end",
         "v.image_newline"),
        _QKV,
    ),
    "deepseekocr": Needs((_PATCH, "v.position_embd.weight", *_SAM), ("attn_qkv.weight",)),
    "deepseekocr2": Needs((*_SAM, "v.resample_query_768.weight", "v.resample_query_1024.weight"),
                          _QKV),
    "deepseek4v": Needs(
        (_PATCH, *_both("mm.1", "mm.2"), "v.image_newline",
         *(f"v.token_embd.img_{name}" for name in ("start", "end", "pad"))),
        ("attn_qkv.weight",),
        ("vision.projector.scale_factor", "vision.image_min_pixels"),
    ),
    "dots3note_v": Needs(
        (_PATCH, *_both("mm.0", "mm.2", "mm.input_norm"), "mm.post_norm.weight"),
        ("attn_qkv.weight",),
        ("vision.spatial_merge_size", "vision.image_min_pixels", "vision.image_max_pixels",
         "vision.expert_used_count"),
    ),
    "dots3note_a": Needs(
        (*_both("a.conv2d.1", "a.conv2d.2", "a.conv2d.3", "mm.a.norm_pre", "mm.a.mlp.1",
                "mm.a.mlp.3"),
         "a.conv_out.weight"),
        _QKV,
    ),
    "step3vl": Needs(
        (_PATCH, "mm.0.weight", "mm.1.weight", "mm.model.fc.weight"), ("attn_qkv.weight",)
    ),
    "muse-glimmer": Needs(
        (_PATCH, "v.position_embd.weight", *(f"mm.{at}.weight" for at in range(3))), _QKV
    ),
    "dots_ocr": Needs(
        (_PATCH, *_both("mm.0", "mm.2", "mm.input_norm"), "mm.post_norm.weight"),
        ("attn_qkv.weight",),
    ),
    "youtuvl": Needs((_PATCH, "mm.input_norm.weight", *_both("mm.0", "mm.2")), _QKV),
    "janus_pro": Needs((_PATCH, "v.position_embd.weight", *_both("mm.0", "mm.1")), _QKV, rows=0),
    "cogvlm": Needs(
        (_PATCH, "v.class_embd", "v.position_embd.weight", "mm.model.fc.weight", "mm.up.weight",
         "mm.gate.weight", "mm.down.weight", *_both("mm.post_fc_norm"), "v.boi", "v.eoi"),
        ("attn_qkv.weight",),
        rows=1,
    ),
    "lightonocr": Needs((_PATCH, "mm.1.weight", "mm.2.weight"), _QKV),
    "paddleocr": Needs((_PATCH, *_both("mm.input_norm", "mm.1", "mm.2")), _QKV),
    "exaone4_5": Needs((_PATCH, f"{_PATCH}.1", *_both("mm.0", "mm.2")), ("attn_qkv.weight",)),
    "phi4": Needs((_PATCH, "v.position_embd.weight", *_both("mm.0", "mm.2")), _QKV),
    "minicpmv4_6": Needs(
        (_PATCH, "v.position_embd.weight", "mm.input_norm.weight", "mm.up.weight",
         "mm.down.weight"),
        _QKV,
    ),
    "glm5v": Needs(
        (_PATCH, f"{_PATCH}.1", "mm.model.fc.weight", "mm.up.weight", "mm.gate.weight",
         "mm.down.weight", "mm.post_norm.weight", *_both("mm.patch_merger")),
        ("attn_qkv.weight",),
    ),
    "qwen2vl_merger": Needs((_PATCH, f"{_PATCH}.1", *_both("mm.0", "mm.2")), _QKV),
    "qwen2.5vl_merger": Needs(
        (_PATCH, f"{_PATCH}.1", *_both("mm.0", "mm.2")), _QKV, ("vision.n_wa_pattern",)
    ),
    "qwen3vl_merger": Needs(
        (_PATCH, f"{_PATCH}.1", "v.patch_embd.bias", "v.position_embd.weight",
         *_both("mm.0", "mm.2")),
        _both("attn_qkv"),
    ),
}  # fmt: skip


def faults(kv: Sequence[KeyValue], tensors: Sequence[Info]) -> Iterator[str]:
    """All that llama.cpp would trip over in a file of encoders."""
    values = {item.key.removeprefix("clip."): item for item in kv if item.key.startswith("clip.")}
    there = {t.name: t for t in tensors}
    parts = {
        "vision": _is_true(values, "has_vision_encoder"),
        "audio": _is_true(values, "has_audio_encoder"),
        "gen.audio": _is_true(values, "has_gen_audio_encoder"),
    }
    if not any(parts.values()):
        yield "neither clip.has_vision_encoder nor clip.has_audio_encoder is true"
    if _is_true(values, "use_gelu") and _is_true(values, "use_silu"):
        yield "both clip.use_gelu and clip.use_silu are true"
    for part in ("vision", "audio"):
        if parts[part]:
            yield from _encoder(part, values, there)


def _is_true(values: Mapping[str, KeyValue], name: str) -> bool:
    return name in values and values[name].value is True


def projectors(kv: Sequence[KeyValue]) -> dict[str, str]:
    """The projector type of each encoder, vision or audio, that a file says it has."""
    values = {item.key: item.value for item in kv}
    both = values.get("clip.projector_type")
    return {
        part: str(both or values.get(f"clip.{part}.projector_type", ""))
        for part in ("vision", "audio")
        if values.get(f"clip.has_{part}_encoder") is True
    }


def _encoder(part: str, values: Mapping[str, KeyValue], there: Mapping[str, Info]) -> Iterator[str]:
    """One of the encoders, of images or of sound."""
    named = values.get("projector_type") or values.get(f"{part}.projector_type")
    kind = named.value if named is not None and named.type == "STRING" else None
    if kind is None:
        yield f"neither clip.projector_type nor clip.{part}.projector_type is a text"
        return
    if kind not in TYPES:
        yield f"the projector type is {kind!r}, which llama.cpp does not know"
        return
    needs = NEEDS.get(_OMNI.get((kind, part), kind), Needs(()))
    yield from _keys(part, needs, values)
    size = {name: _number(values, f"{part}.{name}") for name in (
        "embedding_length", "block_count", "attention.head_count", "image_size", "patch_size",
    )}  # fmt: skip
    for name in needs.tensors:
        if name not in there:
            yield f"{name} is not there"
    if kind not in _OTHER_LAYERS:
        yield from _layers(part, kind, needs, size, there)
    yield from _positions(needs, size, there)


def _keys(part: str, needs: Needs, values: Mapping[str, KeyValue]) -> Iterator[str]:
    """Keys that are not there, or of another type or value than it works with."""
    counts = ["embedding_length", "attention.head_count", "feed_forward_length", "block_count",
              "projection_dim"]  # fmt: skip
    counts += ["image_size", "patch_size"] if part == "vision" else ["num_mel_bins"]
    for name in (*(f"{part}.{count}" for count in counts), *needs.keys):
        item = values.get(name)
        if item is None:
            yield f"clip.{name} is not there"
        elif item.type != "UINT32":
            yield f"clip.{name} is {item.type} where llama.cpp reads UINT32"
        elif item.value > _INT32_MAX:
            yield f"clip.{name} is {item.value}, more than llama.cpp counts to"
    eps = values.get(f"{part}.attention.layer_norm_epsilon")
    if eps is None or eps.type != "FLOAT32":
        found = "not there" if eps is None else eps.type
        yield f"clip.{part}.attention.layer_norm_epsilon is {found}, llama.cpp reads FLOAT32"
    yield from _ranges(part, values)
    if part == "vision":
        for name in ("vision.image_mean", "vision.image_std"):
            item = values.get(name)
            if item is None or item.type != "ARRAY" or item.element_type != "FLOAT32":
                yield f"clip.{name} is not an array of FLOAT32"
            elif len(item.value) < 3:
                yield f"clip.{name} has {len(item.value)} values; llama.cpp wants one a colour"


def _ranges(part: str, values: Mapping[str, KeyValue]) -> Iterator[str]:
    if part == "audio":
        bins = _number(values, "audio.num_mel_bins")
        if bins is not None and not 0 < bins <= 256:
            yield f"clip.audio.num_mel_bins is {bins}; llama.cpp works with 1 to 256"
        return
    size, patch = (_number(values, f"vision.{name}") for name in ("image_size", "patch_size"))
    if size is not None and size > _LARGEST_IMAGE:
        yield f"clip.vision.image_size is {size}; {_LARGEST_IMAGE} is the most"
    if patch is not None and not 0 < patch < 1 << 16:
        yield f"clip.vision.patch_size is {patch}; llama.cpp works with 1 to 65535"
    for name in _MERGES:
        merged = _number(values, f"vision.{name}")
        if merged is not None and not 0 < merged < 1 << 16:
            yield f"clip.vision.{name} is {merged}; llama.cpp works with 1 to 65535"


def _layers(
    part: str, kind: str, needs: Needs, size: Mapping[str, int | None], there: Mapping[str, Info]
) -> Iterator[str]:
    """The tensors of each layer, and heads that divide its width."""
    layers, width, heads = (
        size[name] for name in ("block_count", "embedding_length", "attention.head_count")
    )
    if not layers:
        return
    if width == 0:
        yield f"clip.{part}.embedding_length is 0"
    if heads is not None and width and (heads < 1 or width % heads):
        yield f"clip.{part}.attention.head_count is {heads}, for a width of {width}"
    wanted = ("attn_out.weight", *needs.in_layers)
    for bid in range(layers):
        prefix = f"{part[0]}.blk.{bid}."
        moe = f"{prefix}ffn_gate_exps.weight" in there
        ffn = () if moe else ("ffn_up.weight", "ffn_down.weight")
        if missing := [name for name in (*wanted, *ffn) if prefix + name not in there]:
            yield f"{prefix}{missing[0]} is not there"
            return


def _positions(
    needs: Needs, size: Mapping[str, int | None], there: Mapping[str, Info]
) -> Iterator[str]:
    """A table of positions that is added as it is has a row a patch."""
    table, side, patch = there.get("v.position_embd.weight"), size["image_size"], size["patch_size"]
    if table is None or needs.rows is None or not side or not patch:
        return
    expected = (side // patch) ** 2 + needs.rows
    if len(table.shape) == 2 and table.shape[0] != expected:
        yield (
            f"v.position_embd.weight has {table.shape[0]} rows, not the {expected} of an image of "
            f"{side} pixels in patches of {patch}"
        )


def _number(values: Mapping[str, KeyValue], name: str) -> int | None:
    item = values.get(name)
    value: Any = None if item is None or item.type != "UINT32" else item.value
    return value if isinstance(value, int) else None
