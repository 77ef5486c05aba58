"""dots3.note's encoders: of images, some of whose layers are mixtures of experts, and of sound.

llama.cpp: `conversion/dots3.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from quantkit.architectures.rules import (
    Config,
    Expect,
    Key,
    Map,
    parts,
    stack,
    vector,
    whole,
)
from quantkit.encoders.common import (
    AUDIO,
    AUDIO_KEYS,
    DIMS,
    KERNELS,
    KINDS,
    TEXT_WIDTH,
    VISION,
    A,
    V,
    audio,
    coloured,
    count,
    flag,
    floats,
    lin,
    projector,
    told,
    vision,
)
from quantkit.encoders.rules import Encoder
from quantkit.errors import ConfigError

T = "vision_encoder"
B = f"{T}.blocks.{{bid}}"
S = "audio_encoder.dots_encoder.speech_encoder"
L = f"{S}.layers.{{bid}}"
_P = "audio_encoder.audio_adapter.proj"
_WHISPER = {
    "hidden_size": "d_model", "intermediate_size": "encoder_ffn_dim",
    "num_attention_heads": "encoder_attention_heads", "num_hidden_layers": "encoder_layers",
    "num_mel_bins": "num_mel_bins",
}  # fmt: skip


def _audio(config: Config) -> dict[str, Any] | None:
    """The encoder of sound with the numbers of its Whisper."""
    found = config.find(AUDIO)
    if not isinstance(found, dict):
        return None
    inner = {
        ours: config.one(f"{AUDIO}.whisper_config.{theirs}") for ours, theirs in _WHISPER.items()
    }
    return {**found, **inner}


def _routed(config: Config) -> list[int]:
    """Experts of each layer that sees, 0 where it is dense. Raises ConfigError."""
    found = config.find(f"{VISION}.pyramid_num_routed")
    layers = count(config, VISION)
    if (
        not isinstance(found, list)
        or len(found) != layers
        or not all(type(n) is int and n < 1 << 16 for n in found)
    ):
        raise ConfigError(
            f"{config.where}: 'pyramid_num_routed' is not a list of {layers} numbers, one a layer"
        )
    return [max(n, 0) for n in found]


def _mixed(config: Config, bid: int) -> bool:
    return bid < count(config, VISION) and _routed(config)[bid] > 0


def _experts(config: Config) -> list[int]:
    routed = _routed(config)
    return [*routed, *[0] * (config.layers - len(routed))]


def _prepared(name: str) -> Callable[[Config], Any]:
    """A value of the preprocessor's, which may have a table of its own for images."""
    return lambda c: (
        own
        if (own := c.find(f"preprocessor.{VISION}.{name}")) is not None
        else c.find(f"preprocessor.{name}")
    )


def _colours(name: str) -> Callable[[Config], list[float]]:
    return lambda c: floats(c.where, name, _prepared(name)(c))


def _pixels(end: str) -> Key:
    def read(config: Config) -> int:
        found = _prepared(f"{end}_pixels")(config)
        if type(found) is not int:
            raise ConfigError(
                f"{config.where}: preprocessor_config.json has no '{end}_pixels'; get the file"
            )
        return found

    return Key(f"clip.vision.image_{end}_pixels", read)


def _says(table: str, **values: Any) -> tuple[Expect, ...]:
    return tuple(Expect(f"{table}.{name}", (value,), True) for name, value in values.items())


DOTS3_NOTE = Encoder(
    hf_names=("Dots3NoteForCausalLM", "Dots3NoteForConditionalGeneration"),
    gguf_arch="clip",
    keys=(
        *coloured(_colours("image_mean"), _colours("image_std")),
        *AUDIO_KEYS,
        projector("dots3note_v", "vision"),
        flag("clip.use_silu"),
        Key("clip.vision.attention.layer_norm_epsilon", vision("rms_norm_eps"), "FLOAT32"),
        Key("clip.vision.spatial_merge_size", vision("spatial_merge_size")),
        _pixels("min"),
        _pixels("max"),
        Key("clip.vision.expert_count_per_layer", _routed, "INT32"),
        Key("clip.vision.expert_used_count",
            lambda c: int(c.get(*vision("capacity_factor"), kind="NUMBER"))),
        projector("dots3note_a", "audio"),
        Key("clip.audio.num_mel_bins", audio("num_mel_bins")),
        Key("clip.audio.attention.layer_norm_epsilon", lambda c: 1e-6, "FLOAT32"),
    ),
    late_keys=(),
    expects=(
        *_says(VISION, adapter_type="patch_merger", pre_pixel_shuffle=True, use_qk_norm=True),
        Expect(f"{VISION}.router_scoring_func", ("sigmoid",)),
        Expect(f"{VISION}.router_scale", (1.0,)),
        Expect(f"{VISION}.temporal_patch_size", (1,)),
        Expect(f"{VISION}.use_bias", (False,)),
        *_says(AUDIO, use_conv2d_stem=True, use_rope=True, use_rms_norm=True, chunk_seconds=60),
        *_says(f"{AUDIO}.whisper_config", activation_function="swiglu"),
        *_says(f"{AUDIO}.rope_parameters", partial_rotary_factor=0.5, rope_theta=10000.0),
        Expect(f"{AUDIO}.use_causal", (False,)),
        Expect(f"{AUDIO}.merge_factor", (1,)),
    ),
    dims={
        **DIMS,
        "text": lambda c: c.one(*TEXT_WIDTH),
        "head": told(f"{T}.blocks.0.attn.q_norm.weight"),
        "experts": _experts,
        "expert_ffn": lambda c: next(
            (
                shape[0]
                for name, shape in c.values["shapes"].items()
                if name.endswith(".mlp.experts.0.fc1.weight")
            ),
            1,
        ),
        "merged": lambda c: c.one(*vision("hidden_size"))
        * c.one(*vision("spatial_merge_size")) ** 2,
        "adapted": told(f"{T}.adapter.mlp.0.weight"),
        "three": lambda c: 3,
        "a": lambda c: c.one(*audio("hidden_size")),
        "a_ffn": lambda c: c.one(*audio("intermediate_size")),
        "2a_ffn": lambda c: 2 * c.one(*audio("intermediate_size")),
        "conv1": told(f"{S}.conv2d1.weight"),
        "conv2": told(f"{S}.conv2d2.weight"),
        "conv3": told(f"{S}.conv2d3.weight"),
        "spectrum": told(f"{S}.conv_out.weight", 1),
        "heard": told(f"{_P}.1.weight", 1),
        "a_adapted": told(f"{_P}.1.weight"),
    },
    layers={
        **KINDS,
        "dense": lambda c, bid: bid < count(c, VISION) and not _mixed(c, bid),
        "mixed": _mixed,
    },
    maps=(
        *lin(f"{T}.patch_embed.proj", ("v", "channels", "patch", "patch"), "v.patch_embd", "",
             None),
        vector(f"{T}.patch_embed.norm", "v.pre_ln", "v"),
        vector(f"{B}.norm_1", f"{V}.ln1", "v", "vision"),
        vector(f"{B}.norm_2", f"{V}.ln2", "v", "vision"),
        *lin(f"{B}.attn.qkv", ("3v", "v"), f"{V}.attn_qkv", "vision", False),
        vector(f"{B}.attn.q_norm", f"{V}.attn_q_norm", "head", "vision"),
        vector(f"{B}.attn.k_norm", f"{V}.attn_k_norm", "head", "vision"),
        *lin(f"{B}.attn.proj", ("v", "v"), f"{V}.attn_out", "vision", False),
        # silu(fc1(x)) * fc3(x), and fc2 of it
        *lin(f"{B}.mlp.fc1", ("ffn", "v"), f"{V}.ffn_gate", "dense", False),
        *lin(f"{B}.mlp.fc3", ("ffn", "v"), f"{V}.ffn_up", "dense", False),
        *lin(f"{B}.mlp.fc2", ("v", "ffn"), f"{V}.ffn_down", "dense", False),
        Map(f"{B}.mlp.gate_weight", ("experts", "v"), whole(f"{V}.ffn_gate_inp.weight"), "mixed"),
        Map(f"{B}.mlp.router_bias", ("experts",), whole(f"{V}.exp_probs_b.weight"), "mixed"),
        *(
            Map(f"{B}.mlp.experts.{{xid}}.{name}.weight", shape, stack(f"{V}.{role}.weight"),
                "mixed")
            for name, shape, role in (
                ("fc1", ("expert_ffn", "v"), "ffn_gate_exps"),
                ("fc2", ("v", "expert_ffn"), "ffn_down_exps"),
                ("fc3", ("expert_ffn", "v"), "ffn_up_exps"),
            )
        ),
        vector(f"{T}.post_trunk_norm", "mm.post_norm", "v"),
        *lin(f"{T}.adapter.ln_q", ("v",), "mm.input_norm", ""),
        *lin(f"{T}.adapter.mlp.0", ("adapted", "merged"), "mm.0", ""),
        *lin(f"{T}.adapter.mlp.2", ("text", "adapted"), "mm.2", ""),
        *lin(f"{S}.conv2d1", ("conv1", "one", "three", "three"), "a.conv2d.1", ""),
        *lin(f"{S}.conv2d2", ("conv2", "conv1", "three", "three"), "a.conv2d.2", ""),
        *lin(f"{S}.conv2d3", ("conv3", "conv2", "three", "three"), "a.conv2d.3", ""),
        *lin(f"{S}.conv_out", ("a", "spectrum"), "a.conv_out", "", False),
        vector(f"{L}.self_attn_layer_norm", f"{A}.ln1", "a", "audio"),
        *(
            row
            for theirs, ours in (("q_proj", "q"), ("k_proj", "k"), ("v_proj", "v"),
                                 ("out_proj", "out"))
            for row in lin(f"{L}.self_attn.{theirs}", ("a", "a"), f"{A}.attn_{ours}", "audio",
                           None)
        ),
        vector(f"{L}.final_layer_norm", f"{A}.ln2", "a", "audio"),
        Map(f"{L}.fc1.weight", ("2a_ffn", "a"),
            parts((f"{A}.ffn_gate.weight", "a_ffn"), (f"{A}.ffn_up.weight", "a_ffn")), "audio"),
        Map(f"{L}.fc1.bias", ("2a_ffn",),
            parts((f"{A}.ffn_gate.bias", "a_ffn"), (f"{A}.ffn_up.bias", "a_ffn")), "audio", True),
        *lin(f"{L}.fc2", ("a", "a_ffn"), f"{A}.ffn_down", "audio", None),
        vector(f"{S}.layer_norm", "a.post_ln", "a"),
        *lin(f"{_P}.0", ("heard",), "mm.a.norm_pre", ""),
        *lin(f"{_P}.1", ("a_adapted", "heard"), "mm.a.mlp.1", ""),
        *lin(f"{_P}.3", ("text", "a_adapted"), "mm.a.mlp.3", ""),
    ),
    expert_order=(f"{V}.ffn_gate_exps", f"{V}.ffn_down_exps", f"{V}.ffn_up_exps"),
    drops=(r"(?!(vision|audio)_encoder\.).*",),
    tables={AUDIO: _audio},
    aliases={
        f"{VISION}.hidden_size": f"{VISION}.embed_dim",
        f"{VISION}.image_size": lambda c: 0,  # images of any size
    },
    forced=(
        (r"v\.blk\.\d+\.(ffn_gate_inp|exp_probs_b)\.weight", "F32"),
        (r"a\.(conv2d\.\d|conv_out)\.weight", "F32"),
        *KERNELS,
    ),
)  # fmt: skip

FAMILY = (DOTS3_NOTE,)
