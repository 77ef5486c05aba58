r"""How each of llama.cpp's pre-tokenizers splits text, as data.

A row: the names that split alike (the first is the one that is given where nothing else tells them
apart), and the patterns, applied one after another as the `tokenizers` library's isolating `Split`
does. They are the patterns of the tokenizers that the names stand for, as llama.cpp's
`llama-vocab.cpp` (MIT) quotes them or, where it does not, the ones that it applies itself.

`ignore_merges`: whether llama.cpp takes a word that is a token as it is, without its merges.
`nfc`: the name among `names` whose tokenizers normalize to NFC, where that is characteristic.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SplitPattern:
    """One way to split text, and llama.cpp's names for it."""

    names: tuple[str, ...]
    patterns: tuple[str, ...]
    ignore_merges: bool = False
    nfc: str = ""


_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_PUNCTUATION = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_NEWLINES, _SPACES = r"\s*[\r\n]+", r"\s+(?!\S)|\s+"
_TAIL = rf"{_PUNCTUATION}|{_NEWLINES}|{_SPACES}"
GPT2 = rf"'s|'t|'re|'ve|'m|'ll|'d| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|{_SPACES}"
_CL100K = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}{{1,3}}|{_TAIL}"
_QWEN2 = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}|{_TAIL}"

# words that begin with capitals, and words that are all capitals; gpt-4o keeps contractions on them
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LEAD = r"[^\r\n\p{L}\p{N}]?"
_SLASHED = rf" ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_NEWLINES}|{_SPACES}"


def _cased(upper: str, lower: str, after: str) -> str:
    return rf"{_LEAD}{upper}*{lower}+{after}|{_LEAD}{upper}+{lower}*{after}"


_CASED = _cased(_UPPER, _LOWER, f"{_CONTRACTIONS}?")
_NO_HAN = (_UPPER[:-1] + r"&&[^\p{Han}]]", _LOWER[:-1] + r"&&[^\p{Han}]]")

# DeepSeek: punctuation before Latin letters, words with marks, symbols; digits and kana apart
_ASCII_PUNCTUATION = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"""
_MARKED = rf"{_ASCII_PUNCTUATION}[A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+"
_DEEPSEEK3 = rf"{_MARKED}| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_NEWLINES}|{_SPACES}"
_CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_KANA = "[\u4e00-\u9fa5\u3040-\u30ff]+"
_BLOOM = " ?[^(\\s|.,!?…。，、।۔،)]+"

SPLITS: tuple[SplitPattern, ...] = (
    SplitPattern(
        ("llama-bpe", "llama3", "llama-v3", "glm4", "glm5", "falcon3", "falcon-h1", "pixtral",
         "midm-2.0", "lfm2", "jina-v5-nano"),
        (_CL100K,), ignore_merges=True,
    ),
    SplitPattern(("dbrx", "smaug-bpe", "chatglm-bpe"), (_CL100K,)),
    SplitPattern(
        ("qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "stablelm2", "hunyuan",
         "solar-open", "grok-2", "bailingmoe", "bailingmoe2", "llada-moe"),
        (_QWEN2,),
    ),
    SplitPattern(
        ("qwen35",),
        (rf"{_CONTRACTIONS}|{_LEAD}[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*"
         rf"|{_NEWLINES}|{_SPACES}",),
    ),
    SplitPattern(("ufakzeka",), (rf"{_WORD}|\p{{N}}|{_TAIL}",)),
    SplitPattern(("laguna",), (r"[^\n]+|[\n]+", _QWEN2)),
    SplitPattern(
        ("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2", "granite-embed-multi-97m"),
        (rf"{_CASED}|\p{{N}}{{1,3}}|{_SLASHED}",),
    ),
    SplitPattern(
        ("tiny_aya", "cohere2moe"),
        (r"\d{1,3}(?=(?:\d{3})*\b)", rf"{_CASED}|\p{{N}}{{1,3}}|{_SLASHED}"),
    ),
    SplitPattern(
        ("youtu",),
        ("[\uac00-\ud7a3\u3131-\u318e]+|[！…“”‘’—：；，\u3001-\u303f\ufe30-\ufe4f]+"
         "|[\u3105-\u312f]+|[\u4e00-\u9fa5\u3040-\u30ff]+",
         rf"{_CASED}|\p{{N}}|{_SLASHED}"),
        ignore_merges=True,
    ),
    SplitPattern(
        ("tekken",), (rf"{_cased(_UPPER, _LOWER, '')}|\p{{N}}|{_SLASHED}",), ignore_merges=True
    ),
    SplitPattern(("kimi-k2",), (rf"\p{{Han}}+|{_cased(*_NO_HAN, f'{_CONTRACTIONS}?')}"
                         rf"|\p{{N}}{{1,3}}|{_TAIL}",)),
    SplitPattern(
        ("seed-coder",),
        (rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_NEWLINES}|{_SPACES}",),
    ),
    SplitPattern(
        ("exaone-moe",),
        (rf"{_CONTRACTIONS}|{_LEAD}(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
         rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]?|\s*[\r\n]|{_SPACES}",),
    ),
    SplitPattern(
        ("minicpm5",),
        (r"\p{N}{1,3}", rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}+|{_TAIL}"),
        ignore_merges=True,
    ),
    SplitPattern(
        ("jais-2",),
        (rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}{{1,3}}|{_PUNCTUATION}|{_NEWLINES}|"
         + "|".join(rf"\s{{{n}}}(?!\S)" for n in ("512", "256", "128", "64", "32", "16", "8", "4",
                                                  "1,2"))
         + r"|\s",),
    ),
    SplitPattern(
        ("deepseek-v3", "joyai-llm", "hunyuan-dense", "hy_v4"),
        (r"\p{N}{1,3}", _KANA, _DEEPSEEK3),
    ),
    SplitPattern(
        ("k2-horizon",),  # words with marks and joiners
        (rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}|\p{{M}}|\u200C|\u200D)+|\p{{N}}{{1,3}}|"
         rf"{_TAIL}",),
    ),
    SplitPattern(
        ("spark2_5",),
        (r"\p{N}{1,3}", _KANA, rf"{_MARKED}| ?[\p{{P}}\p{{S}}]+|[\r\n]|{_SPACES}", r"\p{N}"),
    ),
    SplitPattern(
        ("afmoe",),
        (r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))",
         "[\u4e00-\u9fff\u3400-\u4dbf\uf900-\ufaff\u3040-\u30ff\uff65-\uff9f\u2f00-\u2fdf"
         "\u0e40-\u0eff\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff\uac00-\ud7af"
         "\u1100-\u11ff]+",
         _DEEPSEEK3),
    ),
    SplitPattern(
        ("deepseek-llm",),
        (r"[\r\n]", r"\s?[\p{Lu}\p{Ll}\p{Lt}]+", "\\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", _CJK,
         r"\p{N}"),
    ),
    SplitPattern(("deepseek-coder",), (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, r"\p{N}")),
    SplitPattern(
        ("gpt-2", "phi-2", "jina-es", "jina-de", "jina-v2-es", "jina-v2-de", "gigachat", "a.x-4.0",
         "mellum", "modern-bert", "exaone4", "jina-v1-en", "jina-v2-code", "roberta-bpe", "olmo",
         "mpt", "jais", "trillion", "granite-docling"),
        (GPT2,), nfc="olmo",
    ),
    SplitPattern(
        ("starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b",
         "mellum2"),
        (r"\p{N}", GPT2), nfc="command-r",
    ),
    SplitPattern(("falcon",), (r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]")),
    SplitPattern(("default",), (r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    SplitPattern(
        ("chameleon",),
        ("<sentinel:[0-9]+>", "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z", "([\\t\\n]|    |  )",
         r"\p{N}", r"[\p{P}!-/:-@\[-`{-~]", GPT2),
    ),
    SplitPattern(("superbpe",), (r"\p{N}+", r"(?=(\d{3})+(?!\d))")),
    SplitPattern(("bloom", "poro-chat", "gpt3-finnish"), (_BLOOM,)),
    SplitPattern(("viking",), (_BLOOM, r"\p{N}")),
)  # fmt: skip

NAMES: tuple[str, ...] = tuple(name for split in SPLITS for name in split.names)
# llama.cpp's other pre-tokenizers, of BPE vocabularies that are not byte-level
OTHER_NAMES = ("whitespace", "gemma4", "granite-embed-multi-311m", "mmbert", "sarvam-moe")
if len(set(NAMES)) != len(NAMES):
    raise RuntimeError("a pre-tokenizer is in two rows")
