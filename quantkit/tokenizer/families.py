"""What single families do differently with their vocabularies, one row each.

A family without a row has what its files say (`VocabRules()`). Facts of the `set_vocab` methods of
llama.cpp's converter (`conversion/*.py`, MIT).
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class AddedTokens:
    """How tokens are added to a SentencePiece vocabulary, and from which files; later ones win.

    `plain`: the text stays as it is written, and its type is CONTROL if it is special, else
    USER_DEFINED; otherwise U+2581 becomes a space, and what looks special is CONTROL too.
    `unknown`: the special token that is called `unk_token` is UNKNOWN.
    """

    files: tuple[str, ...] = ("added_tokens.json", "tokenizer_config.json")
    plain: bool = False
    score: float = -1000.0
    special_score: float = -1000.0
    unknown: bool = False


@dataclass(frozen=True)
class VocabRules:
    """One family's differences.

    `names`: `architectures` of config.json. `size`: the only vocabulary size that the row is for.
    `pre`: the one pre-tokenizer that llama.cpp knows for the family.
    `config_space_prefix`: `add_prefix_space` of tokenizer_config.json is written "first", "last",
    or "after tokens"; `model_space_prefix`: what tokenizer.model says is, there.
    `space_prefix`: what is written last, whatever the files say; `json_space_prefix`: that, where
    there is no tokenizer.model.
    `ids`: special tokens that the files do not name; `late_ids`: those that overrule them. A token
    is an id, its text, or the text that `{key}` of tokenizer_config.json holds; a text that is not
    in the vocabulary has no effect.
    `{added_tokens_decoder:TEXT}` is a text that this table of tokenizer_config.json lists,
    `{added_tokens:TEXT}` one that it or tokenizer.json does.
    A token may also be a number in another file, `{config.json:eod_token_id}`, the first of a list
    of several there.
    `unused`: how pieces begin that nothing uses.
    `add`: flags that overrule the files. `round_to`: the vocabulary is padded to a multiple.
    `tekken`: a tekken.json is read where there is no tokenizer.json.
    `shown`: texts that are shown, though the files call them special; `control`: those that are
    not, though the files do not. `turns_end`: of several `eos_token_id` of config.json, the first
    that is not the bos is the eot. `template_file_wins`:
    chat_template.jinja is preferred to tokenizer_config.json. `model`: tokenizer.ggml.model.
    `token_types`: an encoder's: how many types of tokens there are where config.json does not say
    it. `unigram`: SentencePiece models of ids as they are ("t5"), or as XLM-RoBERTa has them
    ("fairseq"), with the mask too ("fairseq, mask"). `first_add`: flags that are written first,
    until the files overrule them. `json_first`: tokenizer.json counts, where tokenizer.model is
    there as well. `whitespace`: llama.cpp splits at spaces alone where tokenizer.json does.
    `pieces_pre`: the pre-tokenizer of a tokenizer.json of pieces, which are joined by merges.
    `of_ranks`: (width of the model, kind, id) of special tokens that overrule a vocabulary of
    tiktoken ranks.
    `by_flag`: an added token is special if the files say so, however it looks. `template`: the
    chat template, whatever the files have; `own_template`: the file of llama.cpp's that is taken
    where they have none (or, where chat_template.jinja is preferred, not that one).
    `world`: RWKV's table of byte strings.
    `plamo`: what ends a turn in PLaMo's vocabulary. `chatglm`: tokenizer.model is of ranks, or
    its class adds tokens. `lent`: the model on the Hub whose tokenizer it is, where releases come
    without one.
    """

    names: tuple[str, ...] = ()
    size: int | None = None
    pre: str = ""
    config_space_prefix: str = ""
    space_prefix: bool | None = None
    json_space_prefix: bool | None = None
    ids: tuple[tuple[str, int | str], ...] = ()
    late_ids: tuple[tuple[str, int | str], ...] = ()
    add: tuple[tuple[str, bool], ...] = ()
    round_to: int = 1
    added: AddedTokens = AddedTokens()
    template_file_wins: bool = False
    model: str = ""
    shown: tuple[str, ...] = ()
    control: tuple[str, ...] = ()
    turns_end: bool = False
    unused: str = ""
    model_space_prefix: bool = False
    tekken: bool = False
    token_types: int | None = None
    unigram: str = ""
    first_add: tuple[tuple[str, bool], ...] = ()
    json_first: bool = False
    whitespace: bool = False
    pieces_pre: str = ""
    by_flag: bool = False
    of_ranks: tuple[tuple[int, str, int], ...] = ()
    template: str = ""
    own_template: str = ""
    world: bool = False
    plamo: str = ""
    chatglm: bool = False
    lent: str = ""


_LLAMA = VocabRules(
    names=("LlamaForCausalLM", "LLaMAForCausalLM", "MistralForCausalLM", "MixtralForCausalLM",
           "ArceeForCausalLM", "SmolLM3ForCausalLM", "ApertusForCausalLM",
           "Mistral3ForConditionalGeneration", "Ministral3ForCausalLM", "IQuestCoderForCausalLM",
           "VLlama3ForCausalLM", "SmolVLMForConditionalGeneration",
           "Idefics3ForConditionalGeneration", "LlavaForConditionalGeneration",
           "VoxtralForConditionalGeneration", "NanbeigeForCausalLM", "LlamaModel",
           "LlamaBidirectionalModel", "Sarashina2VisionForCausalLM",
           "JanusForConditionalGeneration"),
    config_space_prefix="first", tekken=True,
)  # fmt: skip
_GRANITE = replace(
    _LLAMA, names=("GraniteForCausalLM", "GraniteMoeForCausalLM", "GraniteMoeSharedForCausalLM",
                   "GraniteSWAForCausalLM", "GraniteMoeSWAForCausalLM",
                   "GraniteSwitchForCausalLM"),
    pre="refact",
)  # fmt: skip


def _llama_like(row: VocabRules) -> tuple[VocabRules, ...]:
    """A row, and before it two sizes that stand for a model: CodeLlama's, the first Granite's."""
    code = (("prefix", 32007), ("suffix", 32008), ("middle", 32009), ("eot", 32010))
    return (
        replace(row, size=32016, late_ids=code),
        replace(row, size=49152, add=(("bos", False),)),
        row,
    )


_GLM = VocabRules(
    names=("Glm4MoeForCausalLM", "Glm4vMoeForConditionalGeneration", "Glm4MoeLiteForCausalLM",
           "GlmMoeDsaForCausalLM", "Glm5NextForConditionalGeneration"),
    pre="glm4",
    ids=(("bos", "[gMASK]"), ("eot", "<|user|>"), ("unk", "<|endoftext|>"),
         ("eom", "<|observation|>")),
)  # fmt: skip
_END = "<|endoftext|>"
_CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content']"
    " + '<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_IM_END = "{added_tokens_decoder:<|im_end|>}"
_CHATML_ENDS = (("bos", _IM_END), ("eos", _IM_END))

RULES: tuple[VocabRules, ...] = (
    *_llama_like(_LLAMA),
    *_llama_like(_GRANITE),
    *_llama_like(replace(_LLAMA, names=("AfmoeForCausalLM",), pre="afmoe")),
    VocabRules(
        names=("ArcticForCausalLM",),
        added=AddedTokens(("tokenizer_config.json",), plain=True, score=-10000.0,
                          special_score=0.0, unknown=True),
    ),
    VocabRules(
        names=("Phi3ForCausalLM", "Phi4ForCausalLMV", "PhiMoEForCausalLM", "PhimoeForCausalLM"),
        added=AddedTokens(("added_tokens.json", "tokenizer_config.json", "tokenizer.json"),
                          plain=True),
    ),
    VocabRules(names=("Ernie4_5_ForCausalLM", "Ernie4_5ForCausalLM", "Ernie4_5_MoeForCausalLM",
                      "PaddleOCRVLForConditionalGeneration"),
               config_space_prefix="last"),
    VocabRules(
        names=("GemmaForCausalLM",), space_prefix=False,
        late_ids=(("prefix", 67), ("suffix", 69), ("middle", 68), ("fsep", 70), ("eot", 107)),
    ),
    VocabRules(names=("Gemma2ForCausalLM", "Gemma3ForCausalLM", "Gemma3ForConditionalGeneration",
                      "Gemma3nForCausalLM", "Gemma3nForConditionalGeneration",
                      "Gemma3TextModel"), space_prefix=False),
    VocabRules(
        names=("Gemma4ForCausalLM", "Gemma4ForConditionalGeneration",
               "Gemma4UnifiedForConditionalGeneration", "Gemma4AssistantForCausalLM",
               "Gemma4UnifiedAssistantForCausalLM", "EmbeddingGemma2Model"), model="gemma4",
        space_prefix=False, add=(("bos", True),),
        shown=("<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", "<|tool_response>",
               "<tool_response|>", '<|"|>'),
    ),
    _GLM,
    replace(_GLM, names=("GlmForCausalLM",), pre="",
            ids=(("eos", _END), ("eot", "<|user|>"), ("unk", _END))),
    replace(_GLM, names=("ChatGLMModel", "ChatGLMForConditionalGeneration"), pre="", chatglm=True,
            ids=(("eos", _END), ("eot", "<|user|>"), ("unk", _END))),
    replace(_GLM, names=("Glm4ForCausalLM", "Glm4vForConditionalGeneration",
                         "GlmOcrForConditionalGeneration"),
            ids=(("eos", _END), ("eot", "<|user|>"), ("unk", _END), ("bos", _END))),
    VocabRules(
        names=("SolarOpenForCausalLM",), pre="solar-open",
        ids=(("eos", _END), ("eot", _END), ("unk", "<unk>"), ("bos", "<|startoftext|>")),
    ),
    VocabRules(names=("NemotronHForCausalLM", "NemotronHPuzzleForCausalLM"), pre="pixtral",
               round_to=8),
    VocabRules(names=("GraniteMoeHybridForCausalLM", "BambaForCausalLM"), round_to=8),
    VocabRules(
        names=("InternLM2ForCausalLM",),
        added=AddedTokens(("added_tokens.json", "tokenizer_config.json", "tokenizer.json"),
                          plain=True),
        unused="[UNUSED", model_space_prefix=True, late_ids=(("eos", "{added_tokens:<|im_end|>}"),),
    ),
    VocabRules(names=("InternLM3ForCausalLM",), config_space_prefix="after tokens",
               late_ids=(("eos", _IM_END),)),
    VocabRules(names=("NemotronForCausalLM",), late_ids=(("pad", 0), ("unk", 1))),
    VocabRules(
        names=("HunYuanDenseV1ForCausalLM", "HunYuanVLForConditionalGeneration"),
        late_ids=(("eos", "{config.json:eod_token_id}"),
                  ("eot", "{generation_config.json:eos_token_id}")),
        of_ranks=((4096, "bos", 127958),),  # the 7B's, whose config names another
    ),
    VocabRules(names=("HunYuanMoEV1ForCausalLM",), pre="hunyuan", late_ids=(("bos", 127959),)),
    VocabRules(names=("KimiLinearForCausalLM", "KimiLinearModel"),
               late_ids=(("eos", "{eos_token}"),)),
    VocabRules(names=("DeepseekV4ForCausalLM",), own_template="deepseek-v4.jinja"),
    VocabRules(names=("KimiK3ForConditionalGeneration",), own_template="kimi-k3.jinja",
               late_ids=(("eos", "{config.json:eos_token_id}"),)),
    VocabRules(names=("MiniMaxText01ForCausalLM", "MiniMaxM1ForCausalLM"), template_file_wins=True,
               own_template="minimax-m1.jinja"),
    VocabRules(names=("Qwen3OmniMoeForConditionalGeneration",),
               late_ids=_CHATML_ENDS),
    VocabRules(names=("Qwen3ASRForConditionalGeneration",), template=_CHATML,
               late_ids=_CHATML_ENDS),
    VocabRules(names=("MuseGlimmerForConditionalGeneration",), late_ids=(("eot", "<|eot|>"),)),
    VocabRules(names=("GPTRefactForCausalLM",), pre="refact",
               late_ids=(("prefix", 1), ("suffix", 3), ("middle", 2))),
    VocabRules(names=("Rwkv6ForCausalLM", "Rwkv7ForCausalLM", "RWKV7ForCausalLM"), world=True,
               own_template="rwkv-world.jinja", ids=(("eot", 261),),
               late_ids=(("bos", 0), ("eos", 0))),
    VocabRules(names=("Plamo2ForCausalLM", "PLaMo2ForCausalLM"), plamo="<|plamo:op|>"),
    VocabRules(names=("Plamo3ForCausalLM", "PLaMo3ForCausalLM"), plamo="<|plamo:tag|>"),
    VocabRules(names=("QWenLMHeadModel",), ids=(("bos", _END), ("eos", _END), ("unk", _END))),
    VocabRules(names=("LagunaForCausalLM",), pre="laguna", template_file_wins=True,
               turns_end=True, control=("</assistant>",)),
    VocabRules(names=("BailingMoeForCausalLM",), pre="bailingmoe"),
    VocabRules(names=("BailingMoeV2ForCausalLM", "BailingMoeV3ForCausalLM",
                      "BailingMoeV3VLForConditionalGeneration"), pre="bailingmoe2"),
    VocabRules(
        names=("Dots3NoteForCausalLM", "Dots3NoteForConditionalGeneration",
               "Dots3NoteTextForCausalLM"),
        ids=(("eot", "<|endofassistant|>"),),
    ),
    VocabRules(names=("LLaDAMoEModel", "LLaDAMoEModelLM"), pre="llada-moe"),
    VocabRules(names=("DeepseekForCausalLM", "DeepseekV2ForCausalLM"), pre="deepseek-llm"),
    VocabRules(names=("GrokForCausalLM", "Grok1ForCausalLM"), pre="grok-2"),
    VocabRules(names=("MiniMaxM2ForCausalLM",), pre="minimax-m2"),
    VocabRules(names=("Llama4ForCausalLM", "Llama4ForConditionalGeneration"), pre="llama4"),
    VocabRules(names=("OlmoForCausalLM", "OLMoForCausalLM", "OlmoeForCausalLM"), pre="olmo"),
    VocabRules(names=("Exaone4ForCausalLM", "Exaone4_5_ForConditionalGeneration"), pre="exaone4"),
    VocabRules(names=("ExaoneMoEForCausalLM", "ExaoneMoeForCausalLM"), pre="exaone-moe"),
    VocabRules(names=("Lfm2ForCausalLM", "LFM2ForCausalLM", "Lfm2VlForConditionalGeneration",
                      "Lfm2Model", "Lfm2BidirectionalModel", "Lfm2BidirectionalForMaskedLM",
                      "Lfm2MoeForCausalLM", "D1Model", "D1OmniModel"), pre="lfm2"),
    VocabRules(names=("Cohere2MoeForCausalLM",), pre="cohere2moe"),
    VocabRules(names=("FalconH1ForCausalLM",), pre="falcon-h1"),
    VocabRules(names=("BertModel", "BertForMaskedLM", "BertForSequenceClassification",
                      "CamembertModel"), token_types=2),
    VocabRules(names=("DistilBertModel", "DistilBertForMaskedLM",
                      "DistilBertForSequenceClassification"), token_types=1),
    VocabRules(names=("RobertaModel", "RobertaForSequenceClassification"), pre="roberta-bpe",
               token_types=2),
    VocabRules(names=("XLMRobertaModel", "XLMRobertaForSequenceClassification"), token_types=2,
               unigram="fairseq"),
    VocabRules(names=("NomicBertModel",), token_types=1, unigram="fairseq, mask"),
    VocabRules(names=("JinaBertModel", "JinaBertForMaskedLM"), token_types=2, whitespace=True),
    VocabRules(
        names=("ModernBertModel", "ModernBertForMaskedLM", "ModernBertForSequenceClassification",
               "ModernBertDecisionModel"),
        pre="modern-bert", pieces_pre="mmbert",
        first_add=(("bos", True), ("eos", True), ("sep", True)),
    ),
    VocabRules(names=("T5ForConditionalGeneration", "T5WithLMHeadModel", "T5EncoderModel",
                      "MT5ForConditionalGeneration", "UMT5ForConditionalGeneration", "UMT5Model"),
               unigram="t5"),
    VocabRules(names=("MambaForCausalLM", "MambaLMHeadModel"), json_first=True,
               lent="EleutherAI/gpt-neox-20b"),
    VocabRules(names=("Mamba2ForCausalLM",), lent="EleutherAI/gpt-neox-20b"),
    VocabRules(names=("OpenELMForCausalLM",), lent="meta-llama/Llama-2-7b-hf"),
    VocabRules(names=("FalconMambaForCausalLM",), json_first=True, pre="falcon"),
    VocabRules(names=("FalconForCausalLM", "RWForCausalLM"), pre="falcon"),
    VocabRules(names=("EuroBertModel", "JinaEmbeddingsV5Model"), first_add=(("bos", False),)),
    VocabRules(names=("NeoBERT", "NeoBERTLMHead", "NeoBERTForSequenceClassification"),
               token_types=1),
    VocabRules(names=("SarvamMoEForCausalLM", "modeling_sarvam_moe.SarvamMoEForCausalLM"),
               pieces_pre="sarvam-moe"),
    VocabRules(names=("DreamModel",), by_flag=True),
    VocabRules(names=("LLaDAModelLM",), by_flag=True, add=(("bos", True),)),
    VocabRules(names=("PanguEmbeddedForCausalLM",), config_space_prefix="last"),
    VocabRules(names=("JambaForCausalLM",), json_space_prefix=False),
)  # fmt: skip

_keys = [(name, row.size) for row in RULES for name in row.names]
if len(set(_keys)) != len(_keys):
    raise RuntimeError("a family has two rows of vocabulary rules")


def rules_for(architecture: str, vocab_size: int) -> VocabRules:
    """The row of an architecture (as config.json names it), or the rules without a row."""
    rows = (r for r in RULES if architecture in r.names and r.size in (None, vocab_size))
    return next(rows, VocabRules())
