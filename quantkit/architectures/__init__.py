"""The architectures that quantkit converts: one family a file, listed here."""

from __future__ import annotations

from difflib import get_close_matches

from quantkit.architectures import (
    afmoe,
    arctic,
    baichuan,
    bailing,
    bailing_hybrid,
    bert,
    bloom,
    codeshell,
    cohere,
    dbrx,
    deci,
    deepseek,
    deepseek_sparse,
    deepseek_v4,
    diffusion,
    dots1,
    dots3,
    ernie,
    eurobert,
    exaone,
    falcon,
    falcon_h1,
    gemma,
    gemma3n,
    gemma4,
    glm,
    glm5_next,
    gpt2,
    gpt_neox,
    gpt_oss,
    granite,
    granite_swa,
    grok,
    hunyuan,
    hunyuan_next,
    internlm,
    jais,
    jamba,
    k2_horizon,
    kimi_k3,
    kimi_linear,
    laguna,
    lfm2,
    llama,
    mamba,
    mellum,
    mimo,
    minicpm,
    minimax,
    minimax_m3,
    mistral,
    mistral4,
    modern_bert,
    mpt,
    nemotron,
    nemotron_h,
    neo_bert,
    nomic_bert,
    olmo,
    olmoe,
    openelm,
    orion,
    pangu,
    phi,
    qwen,
    qwen4_exp,
    qwen_next,
    smallthinker,
    spark,
    stablelm,
    starcoder,
    step,
    t5,
    youtu,
)
from quantkit.architectures.left_out import REASONS
from quantkit.architectures.rules import Architecture
from quantkit.errors import UnsupportedArchitecture

ARCHITECTURES: tuple[Architecture, ...] = (
    *afmoe.FAMILY,
    *arctic.FAMILY,
    *baichuan.FAMILY,
    *bailing.FAMILY,
    *bailing_hybrid.FAMILY,
    *bert.FAMILY,
    *bloom.FAMILY,
    *codeshell.FAMILY,
    *cohere.FAMILY,
    *dbrx.FAMILY,
    *deci.FAMILY,
    *deepseek.FAMILY,
    *deepseek_sparse.FAMILY,
    *deepseek_v4.FAMILY,
    *diffusion.FAMILY,
    *dots1.FAMILY,
    *dots3.FAMILY,
    *ernie.FAMILY,
    *eurobert.FAMILY,
    *exaone.FAMILY,
    *falcon.FAMILY,
    *falcon_h1.FAMILY,
    *gemma.FAMILY,
    *gemma3n.FAMILY,
    *gemma4.FAMILY,
    *glm.FAMILY,
    *glm5_next.FAMILY,
    *gpt2.FAMILY,
    *gpt_neox.FAMILY,
    *gpt_oss.FAMILY,
    *granite.FAMILY,
    *granite_swa.FAMILY,
    *grok.FAMILY,
    *hunyuan.FAMILY,
    *hunyuan_next.FAMILY,
    *internlm.FAMILY,
    *jais.FAMILY,
    *jamba.FAMILY,
    *k2_horizon.FAMILY,
    *kimi_k3.FAMILY,
    *kimi_linear.FAMILY,
    *laguna.FAMILY,
    *lfm2.FAMILY,
    *llama.FAMILY,
    *mamba.FAMILY,
    *mellum.FAMILY,
    *mimo.FAMILY,
    *minicpm.FAMILY,
    *minimax.FAMILY,
    *minimax_m3.FAMILY,
    *mistral.FAMILY,
    *mistral4.FAMILY,
    *modern_bert.FAMILY,
    *mpt.FAMILY,
    *nemotron.FAMILY,
    *nemotron_h.FAMILY,
    *neo_bert.FAMILY,
    *nomic_bert.FAMILY,
    *olmo.FAMILY,
    *olmoe.FAMILY,
    *openelm.FAMILY,
    *orion.FAMILY,
    *pangu.FAMILY,
    *phi.FAMILY,
    *qwen.FAMILY,
    *qwen4_exp.FAMILY,
    *qwen_next.FAMILY,
    *smallthinker.FAMILY,
    *spark.FAMILY,
    *stablelm.FAMILY,
    *starcoder.FAMILY,
    *step.FAMILY,
    *t5.FAMILY,
    *youtu.FAMILY,
)

_BY_NAME = {name: arch for arch in ARCHITECTURES for name in arch.hf_names}
if len(_BY_NAME) != sum(len(arch.hf_names) for arch in ARCHITECTURES):
    raise ValueError("two architectures claim the same name")


def supported() -> list[str]:
    """The `architectures` of config.json that can be converted, sorted."""
    return sorted(_BY_NAME)


def find(name: str) -> Architecture:
    """The architecture for a name from config.json. Raises UnsupportedArchitecture."""
    if name in _BY_NAME:
        return _BY_NAME[name]
    if name in REASONS:
        raise UnsupportedArchitecture(f"architecture {name!r} is not supported: {REASONS[name]}")
    stems = {known.partition("For")[0]: known for known in _BY_NAME}
    near = [stems[s] for s in get_close_matches(name.partition("For")[0], stems, n=2)]
    hint = f" (nearest: {', '.join(near)})" if near else ""
    raise UnsupportedArchitecture(
        f"architecture {name!r} is not supported{hint}; `quantkit inspect --architectures` lists "
        "those that are"
    )
