"""Where llama.cpp b11549 multiplies without a look at adapters (`ggml_mul_mat` where others have
`build_lora_mm`): a pair of such a matrix is loaded there, and changes nothing. And where it
multiplies what comes of a matrix with the model's own scale before a pair's part is added."""

from __future__ import annotations

from quantkit.gguf.tensor_names import parse

_LATENT = "attn_q attn_q_a attn_q_b attn_kv_a_mqa attn_kv_b attn_k_b attn_v_b output "
_INDEXER = "indexer.attn_k indexer.attn_q_b indexer.proj "
_DELTA = "attn_q attn_k attn_v attn_qkv attn_output ssm_beta ssm_f_a ssm_f_b ssm_g_a ssm_g_b ssm_g "

# architecture -> roles of such matrices: `src/models/*.cpp`
_PLAIN = {
    "bailingmoe3": f"{_LATENT}{_DELTA}attn_gate nextn.eh_proj",
    "deepseek2": _LATENT,
    "deepseek32": f"{_LATENT}{_INDEXER}",
    "deepseek4": "attn_output_a output",
    "dots3note": f"{_LATENT}{_INDEXER}",
    "gemma3n": "altup_proj altup_unembd_proj altup_router",
    "gemma-embedding2": "per_layer_model_proj",
    "glm-dsa": f"{_LATENT}{_INDEXER}",
    "glm5-next": f"{_LATENT}{_INDEXER}{_DELTA}indexer_compressor_gate",
    "graniteswitch": "attn_qkv token_embd",
    "hy_v4": f"{_LATENT}{_INDEXER}attn_gate",
    "kimi-k3": f"{_LATENT}{_DELTA}attn_gate ffn_gate ffn_up ffn_down ffn_gate_inp ffn_gate_shexp "
    "ffn_up_shexp ffn_down_shexp ffn_routed_down ffn_routed_up",
    "kimi-linear": f"{_LATENT}{_DELTA}",
    "minicpm3": _LATENT.replace(" output", ""),
    "mistral4": _LATENT,
    "nemotron_h": "ffn_latent_down ffn_latent_up",
    "nemotron_h_moe": "ffn_latent_down ffn_latent_up",
}
# of `build_lora_mm` with a scale that is none of NVFP4's, which belongs to the matrix
_SCALED = {"gemma4": "ffn_down_exps", "talkie": "attn_output ffn_down"}
_EVERYWHERE = ("cls", "cls.output")  # heads after pooling: `src/llama-graph.cpp`


def ignores_adapter(arch: str, name: str) -> bool:
    """Whether llama.cpp leaves an adapter's change of the tensor out."""
    role = parse(name).role
    return role in _EVERYWHERE or role in _PLAIN.get(arch, "").split()


def adds_unscaled(arch: str, name: str) -> bool:
    """Whether llama.cpp adds an adapter's change of the tensor after the model's scale of it, which
    the change should have, too."""
    return parse(name).role in _SCALED.get(arch, "").split()
