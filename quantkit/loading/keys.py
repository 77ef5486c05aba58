"""The keys that llama.cpp's loader reads, with the type that it wants each to have.

Read off `llama_model_base::load_hparams` and the `load_arch_hparams` of every `src/models/*.cpp`
(b11549). A scalar has to have the very type: `get_key` throws at any other. Keys are named without
the architecture before them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

MAX_LAYERS, MAX_EXPERTS, MAX_NAME, MAX_DIMS = 512, 1024, 64, 4  # llama-hparams.h, ggml.h

# scalars that say what the tensors are: their shapes, which of them there are, in which layers
_OF_TENSORS = """
    attention.decay_lora_rank attention.gate_lora_rank attention.group_norm_groups
    attention.iclr_lora_rank attention.indexer.block_size attention.indexer.head_count
    attention.indexer.key_length attention.indexer.kpool attention.key_length
    attention.key_length_mla attention.key_length_mla_swa attention.key_length_swa
    attention.kv_lora_rank attention.kv_lora_rank_swa attention.output_group_count
    attention.output_lora_rank attention.q_lora_rank attention.relative_buckets_count
    attention.shared_kv_layers attention.value_expert_count attention.value_length
    attention.value_length_mla attention.value_length_mla_swa attention.value_length_swa
    attention.value_residual_mix_lora_rank attn_res.block_size block_count block_size
    conv_group_size conv_kernel_size convnext.block_count convnext.embedding_length
    decision.block_count decision.head_count decision.routing_block_count decoder_block_count
    dense_2_feat_in dense_2_feat_out dense_3_feat_in dense_3_feat_out embedding_length
    embedding_length_out embedding_length_per_layer_input expert_chunk_feed_forward_length
    expert_count expert_group_count expert_group_used_count expert_latent_length
    expert_shared_count expert_shared_feed_forward_length experts_per_group features_length
    full_attention_interval hash_layer_count hrm.layers_per_stack hyper_connection.count
    hyper_connection.low_rank interleave_moe_layer_step kda.head_dim leading_dense_block_count
    moe_every_n_layers moe_latent_size n_deepstack_layers nextn_predict_layers num_loops
    ple.conv_kernel ple.heads_per_ngram ple.ngram_size posnet.block_count
    posnet.embedding_length rope.dimension_count rope.dimension_count_swa selector_rank
    selector_top_k shortconv.l_cache ssm.conv_kernel ssm.group_count ssm.inner_size
    ssm.state_size ssm.time_step_rank target_hidden_size time_decay_extra_dim
    time_mix_extra_dim token_shift_count wkv.head_size adapters.count
    adapters.lora_rank
"""
_UINT32 = """
    attention.indexer.local_blocks attention.indexer.top_k attention.sliding_window
    attention.temperature_length attention.value_expert_used_count classifier.pooling_type
    context_length decoder_start_token_id expert_gating_func hrm.h_cycles hrm.l_cycles
    hyper_connection.sinkhorn_iterations ple.eos_token_id ple.image_token_id pooling_type
    rescale_every_n_layers rope.scaling.original_context_length vocab_size
"""
_FLOAT32 = """
    activation.situ_beta activation.situ_linear_beta adapters.router_gain attention.clamp_kqv
    attention.compress_rope_freq_base attention.group_norm_epsilon attention.layer_norm_epsilon
    attention.layer_norm_rms_epsilon attention.max_alibi_bias attention.output_scale
    attention.scale attention.temperature_scale attention.value_scale attn_logit_softcapping
    embedding_scale expert_group_scale expert_weights_scale final_logit_softcapping
    hyper_connection.epsilon hyper_connection.magnitude kda.gate_lower_bound logit_scale
    residual_scale rope.freq_base rope.freq_base_swa rope.scale_linear rope.scaling.alpha
    rope.scaling.attn_factor rope.scaling.factor rope.scaling.yarn_attn_factor
    rope.scaling.yarn_beta_fast rope.scaling.yarn_beta_slow rope.scaling.yarn_ext_factor
    rope.scaling.yarn_log_multiplier router_logit_softcapping
"""
_BOOL = """
    attention.causal attention.indexer.kpool_select_tail expert_weights_norm hrm.prefix_lm
    kda.safe_gate norm_before_fc norm_before_residual rope.scaling.finetuned
    skip_loop_final_norm ssm.dt_b_c_rms swin_norm use_parallel_residual
"""
_STRING = "classifier.activation hidden_activation rope.scaling.type"
# one value for all layers, or an array of one value a layer
_LAYERS_UINT32 = """
    attention.head_count attention.head_count_kv attention.indexer.types
    attention.recurrent_layers expert_feed_forward_length expert_used_count feed_forward_length
"""
_LAYERS_FLOAT32 = """
    swiglu_clamp_exp swiglu_clamp_shexp xielu.alpha_n xielu.alpha_p xielu.beta xielu.eps
"""
# keys of an architecture that are written without it before them
UNPREFIXED = frozenset({"xielu.alpha_n", "xielu.alpha_p", "xielu.beta", "xielu.eps"})
# arrays of one value a layer, whose length llama.cpp does not check: zeros follow a short one
_LAYERS_ALONE = """
    attention.compress_ratios attention.rope_pattern attention.sliding_window_pattern
    deepstack_mapping
"""


# arrays of a length of their own
ARRAYS = frozenset({
    "adapters.token_ids_activate", "adapters.token_ids_substitute", "classifier.output_labels",
    "ple.head_offsets", "ple.head_vocab_sizes", "ple.layer_multipliers", "ple.layers",
    "rope.dimension_sections", "target_layers",
})  # fmt: skip


class Key(NamedTuple):
    """`type`: the GGUF type of a scalar, or of an array's elements. `layers`: an array may stand
    there, of one value a layer; `counted`: llama.cpp checks its length. `of_tensors`: it says what
    the tensors are, so that another value needs other tensors."""

    type: str
    layers: bool = False
    counted: bool = False
    of_tensors: bool = False


KEYS: dict[str, Key] = {
    **dict.fromkeys(_OF_TENSORS.split(), Key("UINT32", of_tensors=True)),
    **dict.fromkeys(_UINT32.split(), Key("UINT32")),
    **dict.fromkeys(_FLOAT32.split(), Key("FLOAT32")),
    **dict.fromkeys(_BOOL.split(), Key("BOOL")),
    **dict.fromkeys(_STRING.split(), Key("STRING")),
    **dict.fromkeys(_LAYERS_UINT32.split(), Key("UINT32", True, True, True)),
    **dict.fromkeys(_LAYERS_FLOAT32.split(), Key("FLOAT32", True, True)),
    **dict.fromkeys(_LAYERS_ALONE.split(), Key("UINT32", True, of_tensors=True)),
    "expert_used_count": Key("UINT32", True, True),
}
# what may stand in an array of these types: `llama_model_loader::get_arr`
ELEMENTS = {"UINT32": ("BOOL", "UINT32", "INT32"), "FLOAT32": ("FLOAT32",)}

# keys without an architecture before them
GENERAL = {
    "general.alignment": "UINT32", "general.name": "STRING", "general.file_type": "UINT32",
    "general.quantization_version": "UINT32", "general.architecture": "STRING",
    "split.no": "UINT16", "split.count": "UINT16", "split.tensors.count": "INT32",
    "tokenizer.ggml.model": "STRING", "tokenizer.ggml.pre": "STRING",
    "tokenizer.chat_template": "STRING",
    **{f"tokenizer.ggml.{k}": "BOOL" for k in (
        "add_bos_token", "add_eos_token", "add_sep_token", "add_space_prefix",
        "remove_extra_whitespaces", "normalizer.lowercase", "normalizer.strip_accents",
    )},
    "tokenizer.ggml.token_type_count": "UINT32",
}  # fmt: skip


@dataclass(frozen=True)
class Range:
    """The values of a number that llama.cpp computes with: others make it stop, or give NaN."""

    least: float
    most: float = float("inf")

    def __contains__(self, value: float) -> bool:
        return self.least <= value <= self.most  # NaN is in none

    def __str__(self) -> str:
        least, most = f"{self.least:g}", f"{self.most:g}"
        return f"{least} alone" if least == most else f"{least} to {most}"


EPSILON, POSITIVE = Range(0, 1), Range(1e-6, 1e30)
ONE, SOME = Range(1, 1), Range(1, 0xFFFFFFFF)
FACTOR = Range(-1e6, 1e6)  # of every other FLOAT32
RANGES: dict[str, Range] = {  # the key of one architecture has the architecture before it
    "attention.layer_norm_epsilon": EPSILON, "attention.layer_norm_rms_epsilon": EPSILON,
    "attention.group_norm_epsilon": EPSILON, "hyper_connection.epsilon": EPSILON,
    "rope.freq_base": POSITIVE, "rope.freq_base_swa": POSITIVE,
    "attention.compress_rope_freq_base": POSITIVE, "rope.scaling.factor": Range(0, 1e6),
    "rope.scaling.yarn_beta_fast": POSITIVE, "rope.scaling.yarn_beta_slow": POSITIVE,
    "logit_scale": POSITIVE, "attn_logit_softcapping": POSITIVE,
    "attention.indexer.top_k": Range(1, 0xFFFFFFFF),
    "block_count": Range(1, MAX_LAYERS), "expert_count": Range(0, MAX_EXPERTS),
    "expert_gating_func": Range(1, 4), "context_length": Range(1, 2**31 - 1),
    "pooling_type": Range(0, 4), "classifier.pooling_type": Range(0, 4),
    "hyper_connection.sinkhorn_iterations": Range(1, 1000),
    "qwen4exp.hyper_connection.count": Range(2, 1024),
    "glm5-next.hyper_connection.count": Range(4, 4),
    "deepseek4.hyper_connection.count": Range(4, 4), "deepseek4.attention.head_count_kv": ONE,
    "deepseek4.expert_gating_func": Range(4, 4), "bailingmoe3.kda.safe_gate": ONE,
    "hrm.layers_per_stack": SOME, "hrm.h_cycles": SOME, "hrm.l_cycles": SOME,
    "bailingmoe3.kda.gate_lower_bound": Range(-1e6, -1e-6),
}  # fmt: skip
WORDS: dict[str, frozenset[str]] = {  # texts that llama.cpp knows
    "rope.scaling.type": frozenset({"none", "linear", "yarn", "longrope"}),
    "classifier.activation": frozenset({"gelu", "silu", "tanh"}),
}
