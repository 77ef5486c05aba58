"""What llama.cpp asks of a vocabulary: `llama_vocab::impl::load` of `src/llama-vocab.cpp`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING, Any

from quantkit.gguf.container import KeyValue
from quantkit.loading import splitting
from quantkit.loading.values import texts

if TYPE_CHECKING:
    from quantkit.loading.values import Info

_MODELS = {"llama", "bert", "gpt2", "hybriddna", "whitespace", "t5", "rwkv", "plamo2", "plamo3",
           "gemma4"}  # fmt: skip
NONE = {"none", "no_vocab"}
_TYPED = {"bert", "jina-bert-v3", "nomic-bert", "nomic-bert-moe"}  # that want types of tokens
_MERGED = {"gpt2", "hybriddna", "whitespace", "gemma4"}
# ids that llama.cpp falls back from where they are no token's: answers would not end, or begin
_IDS = tuple(f"{kind}_token_id" for kind in ("bos", "eos", "unknown", "padding", "eot", "eom"))
# the tokens that texts begin and end with where no key names them
_FIRST = {"llama": 1, "bert": 101, "gpt2": 11, "hybriddna": 11, "whitespace": 11, "plamo2": 1,
          "plamo3": 1}  # fmt: skip
_LAST = {"llama": 2, "t5": 1, "gpt2": 11, "hybriddna": 11, "whitespace": 11, "plamo2": 2,
         "plamo3": 2}  # fmt: skip
# values of `pre`: texts begin with a token of their own; there is none unless it is named
_BEGINNING = {
    "llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2",
    "jina-v5-nano", "tekken", "chameleon", "gemma4", "granite-embed-multi-311m",
}  # fmt: skip
_FORCED = {"gemma4", "granite-embed-multi-311m"}  # whatever add_bos_token says
_BARE = {"chatglm-bpe", "glm4", "glm5"}
_SPLIT_AT_SPACES = "whitespace"
UNSET = 0xFFFFFFFF  # LLAMA_TOKEN_NULL
# values of tokenizer.ggml.pre
_PRE = """
    a.x-4.0 afmoe bailingmoe bailingmoe2 bloom chameleon chatglm-bpe codeshell
    cohere2moe command-r dbrx deepseek-coder deepseek-llm deepseek-r1-qwen deepseek-v3 default
    exaone exaone-moe exaone4 f2llmv2 falcon falcon-h1 falcon3 gemma4 gigachat glm4 glm5 gpt-2
    gpt-4o gpt3-finnish granite-docling granite-embed-multi-311m granite-embed-multi-97m grok-2
    hunyuan hunyuan-dense hy_v4 jais jais-2 jina-de jina-es jina-v1-en jina-v2-code jina-v2-de
    jina-v2-es jina-v5-nano joyai-llm k2-horizon kanana2 kimi-k2 kormo laguna lfm2 llada-moe
    llama-bpe llama-v3 llama3 llama4 megrez mellum mellum2 midm-2.0 minerva-7b minicpm5
    minimax-m2 mmbert modern-bert mpt olmo phi-2 pixtral poro-chat qwen2 qwen35 refact roberta-bpe
    sarvam-moe seed-coder smaug-bpe smollm solar-open spark2_5 stablelm2 starcoder superbpe talkie
    tekken tiny_aya trillion ufakzeka viking whitespace youtu
"""
# whose output is of vectors, or of a part of the vocabulary
_OTHER_OUTPUT = {"gemma-embedding2", "eagle3", "dflash"}
PRE_TOKENIZERS = frozenset(_PRE.split())


def faults(by_key: Mapping[str, KeyValue], tensors: Sequence[Info]) -> Iterator[str]:
    """What is wrong with the vocabulary of a model."""
    kv = {k.removeprefix("tokenizer.ggml."): item for k, item in by_key.items()}
    model = kv["model"].value if "model" in kv else None
    if model is None:
        yield "tokenizer.ggml.model is not there: the file has no vocabulary"
        return
    if model in NONE:
        yield from _without(by_key, tensors)
        return
    if model not in _MODELS:
        yield f"tokenizer.ggml.model is {model!r}, which llama.cpp does not know"
        return
    if "tokens" not in kv or kv["tokens"].type != "ARRAY" or not kv["tokens"].length:
        yield "tokenizer.ggml.tokens is not there"
        return
    if kv["tokens"].element_type != "STRING":
        yield "tokenizer.ggml.tokens is no array of STRING"
        return
    count = kv["tokens"].length
    named = by_key.get("general.architecture")
    other = named is not None and named.value in _OTHER_OUTPUT
    for name in ("token_embd.weight", *(() if other else ("output.weight",))):
        t = next((t for t in tensors if t.name == name), None)
        if t is not None and (rows := prod(t.shape[:-1])) != count:
            yield f"the vocabulary has {count} tokens, {name} {rows} rows"
    yield from _beside(kv, model, count)
    yield from _types(kv, by_key, tensors)
    yield from _repeated(kv["tokens"])
    for name in _IDS:
        item = kv.get(name)
        if item is None or item.type != "UINT32" or item.value == UNSET:
            continue
        if name == "bos_token_id" and not _begins(kv, model):
            continue
        if item.value >= count:
            yield f"tokenizer.ggml.{name} is {item.value}, of {count} tokens"
    yield from _edges(kv, model, count)
    name, arch = (
        str(by_key[k].value) if k in by_key else ""
        for k in ("general.name", "general.architecture")
    )
    yield from splitting.faults(kv, model, name, arch)


def _without(by_key: Mapping[str, KeyValue], tensors: Sequence[Info]) -> Iterator[str]:
    """Where there are no tokens, a key says how many rows their table has."""
    arch = by_key["general.architecture"].value if "general.architecture" in by_key else ""
    item = by_key.get(f"{arch}.vocab_size")
    count = item.value if item is not None and item.type == "UINT32" else 0
    table = next((t for t in tensors if t.name == "token_embd.weight"), None)
    if table is not None and (rows := prod(table.shape[:-1])) != count:
        yield f"{arch}.vocab_size is {count}, token_embd.weight has {rows} rows"


def _types(
    kv: Mapping[str, KeyValue], by_key: Mapping[str, KeyValue], tensors: Sequence[Info]
) -> Iterator[str]:
    """An encoder's types of tokens: as many as its table has rows (bert.cpp and its kin)."""
    item = kv.get("token_type_count")
    count = item.value if item is not None and item.type == "UINT32" else 0
    table = next((t for t in tensors if t.name == "token_types.weight"), None)
    rows = prod(table.shape[:-1]) if table is not None else count
    if rows != count:
        yield f"tokenizer.ggml.token_type_count is {count}, not the {rows} of token_types.weight"
    elif not count and by_key["general.architecture"].value in _TYPED:
        yield "tokenizer.ggml.token_type_count is not there"


def _pre(kv: Mapping[str, KeyValue], model: str) -> str:
    """How texts are cut before anything is merged; empty where the kind has no such thing."""
    if model not in _MERGED or model == "gemma4":
        return "gemma4" if model == "gemma4" else ""
    return str(kv["pre"].value) if "pre" in kv else ""


def _begins(kv: Mapping[str, KeyValue], model: str) -> bool:
    """Whether texts begin with a token of their own: otherwise none is asked for."""
    item = kv.get("add_bos_token")
    return begins(model, _pre(kv, model), None if item is None else bool(item.value))


def begins(model: str, pre: str, flag: bool | None) -> bool:
    """Whether llama.cpp begins texts with a token, by a vocabulary's model, its pre-tokenizer and
    its `add_bos_token`, if there is one."""
    if model in _MERGED:
        return pre in _FORCED or (pre in _BEGINNING if flag is None else flag)
    return flag is None or flag


def usual_id(kind: str, model: str, pre: str) -> int | None:
    """The id that llama.cpp takes for "bos" or "eos" where a file names none."""
    if kind == "bos":
        return None if pre in _BARE else _FIRST.get(model)
    return _LAST.get(model)


def _edges(kv: Mapping[str, KeyValue], model: str, count: int) -> Iterator[str]:
    """There is a token where texts begin or end with one: `llama_vocab::impl::tokenize`."""
    first = {} if _pre(kv, model) in _BARE else _FIRST
    for flag, name, known, always, usual in (
        ("add_bos_token", "bos_token_id", first, {"bert"}, {"llama"}),
        ("add_eos_token", "eos_token_id", _LAST, set[str](), {"t5"}),
    ):
        item = kv.get(flag)
        wanted = model in usual if item is None else bool(item.value)
        if name == "bos_token_id" and model in _MERGED:
            wanted = _begins(kv, model)
        named = kv.get(name)
        own = named.value if named is not None and named.type == "UINT32" else count
        ids = [known.get(model, count), own]
        if model == "rwkv" or (model == "bert" and name == "eos_token_id"):
            continue
        if (wanted or model in always) and all(n >= count for n in ids):
            yield f"texts get a {name}, and no token is named"


def _beside(kv: Mapping[str, KeyValue], model: str, count: int) -> Iterator[str]:
    """The arrays that go with the tokens."""
    for name, kinds in (("scores", ("FLOAT32", "INT32")), ("token_type", ("INT32",))):
        item = kv.get(name)
        if item is None:
            continue
        if item.type != "ARRAY" or item.element_type not in kinds:
            yield f"tokenizer.ggml.{name} is no array of {' or '.join(kinds)}"
        elif item.length != count:
            yield f"tokenizer.ggml.{name} has {item.length} entries for {count} tokens"
    item = kv.get("suppress_tokens")
    if item is not None and (item.type != "ARRAY" or item.element_type != "INT32"):
        yield "tokenizer.ggml.suppress_tokens is no array of INT32"
    if model == "t5":
        yield from _charsmap(kv.get("precompiled_charsmap"))
        yield from _scores(kv)
    pre = kv["pre"].value if "pre" in kv else ""
    merges = kv.get("merges")
    if model == "llama":
        yield from _scores(kv)
    elif model in _MERGED and pre != "kimi-k2":
        if merges is None or merges.type != "ARRAY" or not merges.length:
            yield "tokenizer.ggml.merges is not there: text would be split into single bytes"
        elif merges.element_type != "STRING":
            yield "tokenizer.ggml.merges is no array of STRING"
    if model in _MERGED - {"gemma4"} and pre and pre not in PRE_TOKENIZERS:
        yield f"tokenizer.ggml.pre is {pre!r}, which llama.cpp does not know"
    if pre == _SPLIT_AT_SPACES and model in _MERGED - {_SPLIT_AT_SPACES, "gemma4"}:
        yield f"tokenizer.ggml.pre is {pre!r} and the model {model!r}: llama.cpp ends at two spaces"


def _charsmap(item: KeyValue | None) -> Iterator[str]:
    """How characters are replaced."""
    if item is None:
        return
    if item.type != "ARRAY" or item.element_type not in ("INT8", "UINT8"):
        yield "tokenizer.ggml.precompiled_charsmap is no array of UINT8"
    elif fault := splitting.charsmap_fault(item.raw[16:]):
        yield f"tokenizer.ggml.precompiled_charsmap of {item.length} bytes {fault}"


def _scores(kv: Mapping[str, KeyValue]) -> Iterator[str]:
    """A SentencePiece vocabulary joins the pair with the best score first."""
    item = kv.get("scores")
    if item is None or item.type != "ARRAY" or not item.length:
        yield "tokenizer.ggml.scores is not there: text would be split at random"
        return
    if (score := _only_score(item, kv.get("token_type"))) is not None:
        yield (
            f"tokenizer.ggml.scores are all {score:g}: they were lost, and text is split "
            "otherwise than the model was trained with"
        )


# what follows is asked of every output of a run, and its vocabulary is one object in all of them
@lru_cache(maxsize=4)
def _only_score(item: KeyValue, types: KeyValue | None) -> float | None:
    """The score that all ordinary tokens have; None where they have several."""
    kinds = types.value if types is not None else [1] * item.length
    ordinary = [s for s, kind in zip(item.value, kinds, strict=False) if kind == 1]
    return ordinary[0] if len(ordinary) > 1 and len(set(ordinary)) == 1 else None


@lru_cache(maxsize=4)
def _repeated(tokens: KeyValue) -> tuple[str, ...]:
    """One text for two tokens, which llama.cpp ends at. A text ends for it where a NUL is, and an
    empty one is `[EMPTY_<id>]` to it."""
    seen: dict[bytes, int] = {}
    for i, whole in enumerate(texts(tokens)):
        text = whole.partition(b"\0")[0]
        first = seen.setdefault(text or b"[EMPTY_%d]" % i, i)
        if first != i:
            shown: Any = text.decode("utf-8", "replace")
            why = "" if text == whole else " (llama.cpp ends a text at its first NUL)"
            return (f"tokens {first} and {i} have the same text, {shown!r}{why}",)
    return ()
