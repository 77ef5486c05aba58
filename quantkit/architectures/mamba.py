"""Mamba, Mamba 2 and Falcon-Mamba, and the layers of Mamba 2 inside hybrid models: rows, dimensions
and keys. llama.cpp: `conversion/mamba.py`, `conversion/granite.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from quantkit.architectures.common import EMBEDDINGS
from quantkit.architectures.rules import (
    Architecture,
    Config,
    Dim,
    Expect,
    Key,
    Map,
    edited,
    linear,
    vector,
    whole,
)
from quantkit.errors import ConfigError


def mamba2(base: str, layers: str) -> tuple[Map, ...]:
    """The tensors of one layer below `base`."""
    return (
        Map(
            f"{base}.A_log",
            ("ssm_heads",),
            edited(whole("ssm_a", "ssm_heads", "one"), ("minus_exp",)),
            layers,
        ),
        Map(f"{base}.D", ("ssm_heads",), whole("ssm_d", "ssm_heads", "one"), layers),
        Map(f"{base}.dt_bias", ("ssm_heads",), whole("ssm_dt.bias"), layers),
        Map(
            f"{base}.conv1d.weight",
            ("conv", "one", "kernel"),
            whole("ssm_conv1d.weight", "conv", "kernel"),
            layers,
        ),
        Map(f"{base}.conv1d.bias", ("conv",), whole("ssm_conv1d.bias"), layers, optional=True),
        *linear(f"{base}.in_proj", ("ssm_in", "hidden"), "ssm_in", layers=layers, bias=False),
        *linear(f"{base}.out_proj", ("hidden", "inner"), "ssm_out", layers=layers, bias=False),
        Map(f"{base}.norm.weight", ("inner",), whole("ssm_norm.weight", "groups", "group"), layers),
    )


def mamba2_dims(heads: str, head: str, groups: str, state: str, kernel: str) -> dict[str, Dim]:
    """The dimensions of such layers, by what config.json calls their sizes."""

    def inner(c: Config) -> int:
        n: int = c.get(heads) * c.get(head)
        return n

    return {
        "ssm_heads": lambda c: c.get(heads),
        "groups": lambda c: c.get(groups),
        "group": lambda c: inner(c) // c.get(groups),
        "inner": inner,
        "kernel": lambda c: c.get(kernel),
        "conv": lambda c: inner(c) + 2 * c.get(groups) * c.get(state),
        "ssm_in": lambda c: 2 * (inner(c) + c.get(groups) * c.get(state)) + c.get(heads),
    }


def ssm_keys(heads: str, head: str, groups: str, state: str, kernel: str) -> tuple[Key, ...]:
    """Their keys, in the order of llama.cpp's GraniteHybridModel."""
    return (
        Key("{arch}.ssm.conv_kernel", kernel),
        Key("{arch}.ssm.state_size", state),
        Key("{arch}.ssm.group_count", groups),
        Key("{arch}.ssm.inner_size", lambda c: c.get(heads) * c.get(head)),
        Key("{arch}.ssm.time_step_rank", heads),
    )


def per_layer(key: str, name: str, where: Callable[[Config, int], bool]) -> Key:
    """A value of config.json for the layers of one kind, zero for the others."""

    def read(config: Config) -> list[int]:
        n = config.get(name)
        return [n if where(config, bid) else 0 for bid in range(config.blocks)]

    return Key("{arch}." + key, read)


B = "backbone.layers.{bid}"


def _rounded(multiple: int) -> Callable[[Config], int]:
    """The rows of the embeddings: the vocabulary, rounded up."""

    def read(config: Config) -> int:
        n = config.one("pad_vocab_size_multiple", default=multiple)
        return int(-(-config.one("vocab_size") // max(n, 1)) * n)

    return read


def _inner(config: Config) -> int:
    """Channels of the state, of which llama.cpp's Mamba has twice the width."""
    hidden = config.one("hidden_size")
    n = config.one("intermediate_size", "d_inner", default=0) or 2 * hidden
    if n != 2 * hidden:
        raise ConfigError(f"{config.where}: {n} channels of state; llama.cpp runs {2 * hidden}")
    return n


def _rank(config: Config) -> int:
    n = config.find("time_step_rank") or config.find("dt_rank") or "auto"
    return -(-config.one("hidden_size") // 16) if n == "auto" else int(n)


def _first_keys(hidden: str = "hidden_size") -> tuple[Key, ...]:
    return (
        Key("{arch}.context_length", lambda c: 1 << 20),
        Key("{arch}.embedding_length", hidden),
        Key("{arch}.feed_forward_length", lambda c: 0),
        Key("{arch}.attention.head_count", lambda c: 0),
        Key("{arch}.block_count", lambda c: c.layers),
    )


RMS = Key(
    "{arch}.attention.layer_norm_rms_epsilon",
    lambda c: c.get("layer_norm_epsilon", "rms_norm_eps", kind="FLOAT32", default=0) or 1e-5,
    "FLOAT32",
)
SPELLINGS = {"hidden_size": "d_model", "num_hidden_layers": "n_layer"}
BACKBONE = (
    Map("backbone.embeddings.weight", ("vocab", "hidden"), whole("token_embd.weight")),
    vector("backbone.norm_f", "output_norm"),
    EMBEDDINGS[2],
    vector(f"{B}.norm", "attn_norm"),
)

MAMBA = Architecture(
    hf_names=("MambaForCausalLM", "MambaLMHeadModel", "FalconMambaForCausalLM"),
    gguf_arch="mamba",
    keys=(
        *_first_keys(),
        Key("{arch}.ssm.conv_kernel", ("conv_kernel", "d_conv"), default=4),
        Key("{arch}.ssm.inner_size", _inner),
        Key("{arch}.ssm.state_size", ("state_size", "d_state"), default=16),
        Key("{arch}.ssm.time_step_rank", _rank),
        RMS,
        Key("{arch}.ssm.dt_b_c_rms", lambda c: c.find("model_type") == "falcon_mamba", "BOOL"),
    ),
    late_keys=(),
    expects=(Expect("use_bias", (False,)), Expect("use_conv_bias", (True,)),
             Expect("hidden_act", ("silu",)), Expect("rms_norm", (True,)),
             Expect("d_intermediate", (0,)), Expect("attn_layer_idx", ([],))),
    aliases={**SPELLINGS, "vocab_size": _rounded(8)},
    dims={
        "vocab": lambda c: c.one("vocab_size"),
        "hidden": lambda c: c.one("hidden_size"),
        "one": lambda c: 1,
        "inner": _inner,
        "2inner": lambda c: 2 * _inner(c),
        "kernel": lambda c: c.get("conv_kernel", "d_conv", default=4),
        "state": lambda c: c.get("state_size", "d_state", default=16),
        "rank": _rank,
        "rank + 2state": lambda c: _rank(c) + 2 * c.get("state_size", "d_state", default=16),
    },
    maps=(
        *BACKBONE,
        Map(f"{B}.mixer.A_log", ("inner", "state"), edited(whole("ssm_a"), ("minus_exp",))),
        Map(f"{B}.mixer.D", ("inner",), whole("ssm_d")),
        Map(f"{B}.mixer.conv1d.weight", ("inner", "one", "kernel"),
            whole("ssm_conv1d.weight", "inner", "kernel")),
        Map(f"{B}.mixer.conv1d.bias", ("inner",), whole("ssm_conv1d.bias")),
        *linear(f"{B}.mixer.in_proj", ("2inner", "hidden"), "ssm_in", bias=False),
        *linear(f"{B}.mixer.x_proj", ("rank + 2state", "inner"), "ssm_x", bias=False),
        *linear(f"{B}.mixer.dt_proj", ("inner", "rank"), "ssm_dt", bias=True),
        *linear(f"{B}.mixer.out_proj", ("hidden", "inner"), "ssm_out", bias=False),
    ),
    # as the code of the paper has it, and Codestral's first form
    renames=(
        (r"^backbone\.embedding\.", "backbone.embeddings."),
        (r"^model\.(?=backbone|lm_head)", ""),
    ),
    drops=(),
    twins=("lm_head.weight", "backbone.embeddings.weight"),
    defaults={"tie_word_embeddings": True},
)  # fmt: skip


def _inner2(config: Config) -> int:
    hidden, expand = config.one("hidden_size"), config.one("mamba_expand", "expand", default=2)
    n = config.one("mamba_d_ssm", "intermediate_size", "d_inner", default=0) or expand * hidden
    head = config.one("ssm head")
    if n != expand * hidden or n % max(head, 1):
        raise ConfigError(f"{config.where}: {n} channels of state, of {hidden} and heads of {head}")
    return n


MAMBA2 = replace(
    MAMBA,
    hf_names=("Mamba2ForCausalLM",),
    gguf_arch="mamba2",
    keys=(
        *_first_keys(),
        Key("{arch}.ssm.conv_kernel", "ssm kernel"),
        Key("{arch}.ssm.inner_size", _inner2),
        Key("{arch}.ssm.state_size", "ssm state"),
        Key("{arch}.ssm.time_step_rank", "ssm heads"),
        Key("{arch}.ssm.group_count", "ssm groups"),
        RMS,
    ),
    aliases={
        **SPELLINGS,
        "vocab_size": _rounded(16),
        "ssm kernel": lambda c: c.get("conv_kernel", "d_conv", default=4),
        "ssm state": lambda c: c.get("state_size", "d_state", default=128),
        "ssm head": lambda c: c.get("mamba_d_head", "head_dim", default=64),
        "ssm groups": lambda c: c.get("n_groups", default=1),
        "ssm heads": lambda c: _inner2(c) // c.get("ssm head"),
    },
    dims={
        **{name: MAMBA.dims[name] for name in ("vocab", "hidden", "one")},
        **mamba2_dims("ssm heads", "ssm head", "ssm groups", "ssm state", "ssm kernel"),
    },
    maps=(*BACKBONE, *mamba2(f"{B}.mixer", "")),
    renames=(*MAMBA.renames, (r"\.dt_proj\.bias$", ".dt_bias")),
    twins=(),
)

FAMILY = (MAMBA, MAMBA2)
