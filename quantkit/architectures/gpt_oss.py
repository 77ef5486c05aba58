"""gpt-oss: attention sinks, biases everywhere, experts kept as `[in, out]` with gate and up rows
taking turns, or in MXFP4, or one by one as linear layers. llama.cpp: `conversion/gpt_oss.py`."""

from __future__ import annotations

from quantkit.architectures.common import (
    DIMS,
    EMBEDDINGS,
    RMS_NORM,
    TEXT_KEYS,
    L,
    attention,
    expert_dims,
    with_head_dim,
)
from quantkit.architectures.rules import (
    Architecture,
    Expect,
    Key,
    Map,
    interleaved,
    interleaved_stack,
    linear,
    stack,
    transposed,
    vector,
    whole,
)

X = f"{L}.mlp.experts"

GPT_OSS = Architecture(
    hf_names=("GptOssForCausalLM",),
    gguf_arch="gpt-oss",
    keys=with_head_dim(TEXT_KEYS),
    late_keys=(
        Key("{arch}.attention.sliding_window", "sliding_window"),
        Key("{arch}.expert_feed_forward_length", "intermediate_size"),
    ),
    expects=(RMS_NORM, Expect("swiglu_limit", (7.0,)), Expect("attention_bias", (True,))),
    dims={**DIMS, **expert_dims("intermediate_size")},
    maps=(
        *EMBEDDINGS,
        vector(f"{L}.input_layernorm", "attn_norm"),
        vector(f"{L}.post_attention_layernorm", "post_attention_norm"),
        *attention(bias=True, out_bias=True),
        Map(f"{L}.self_attn.sinks", ("heads",), whole("attn_sinks.weight")),
        *linear(f"{L}.mlp.router", ("experts", "hidden"), "ffn_gate_inp", bias=True),
        Map(f"{X}.gate_up_proj_bias", ("experts", "2expert_ffn"),
            interleaved("ffn_gate_exps.bias", "ffn_up_exps.bias"), flat=True),
        Map(f"{X}.down_proj_bias", ("experts", "hidden"), whole("ffn_down_exps.bias")),
        Map(f"{X}.gate_up_proj", ("experts", "hidden", "2expert_ffn"),
            transposed("ffn_gate_exps.weight", "ffn_up_exps.weight", interleave=True)),
        Map(f"{X}.down_proj", ("experts", "expert_ffn", "hidden"),
            transposed("ffn_down_exps.weight")),
        # MXFP4, repacked: rows are as they should be
        Map(f"{X}.gate_up_proj.mxfp4", ("experts", "2expert_ffn", "hidden"),
            interleaved("ffn_gate_exps.weight", "ffn_up_exps.weight")),
        Map(f"{X}.down_proj.mxfp4", ("experts", "hidden", "expert_ffn"),
            whole("ffn_down_exps.weight")),
        # one by one, as transformers' and Unsloth's bitsandbytes have them
        Map(f"{X}.gate_up_projs.{{xid}}.weight", ("2expert_ffn", "hidden"),
            interleaved_stack("ffn_gate_exps.weight", "ffn_up_exps.weight"),
            like=f"{X}.gate_up_proj"),
        Map(f"{X}.gate_up_projs.{{xid}}.bias", ("2expert_ffn",),
            interleaved_stack("ffn_gate_exps.bias", "ffn_up_exps.bias"),
            like=f"{X}.gate_up_proj_bias"),
        Map(f"{X}.down_projs.{{xid}}.weight", ("hidden", "expert_ffn"),
            stack("ffn_down_exps.weight"), like=f"{X}.down_proj"),
        Map(f"{X}.down_projs.{{xid}}.bias", ("hidden",), stack("ffn_down_exps.bias"),
            like=f"{X}.down_proj_bias"),
    ),
    renames=((r"\.mlp\.router\.linear\.", ".mlp.router."),),
    defaults={"rope_theta": 150000.0, "rms_norm_eps": 1e-5, "head_dim": 64},
    fuses=("qkv",),
)  # fmt: skip

FAMILY = (GPT_OSS,)
