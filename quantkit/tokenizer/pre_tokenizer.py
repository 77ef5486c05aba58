"""Which of llama.cpp's pre-tokenizers splits text as a byte-level tokenizer does.

llama.cpp recognises a tokenizer by the hash of the ids that it gives a text, so it does not know
one whose vocabulary was merged or extended. Here the split decides, which tokenizer.json states:
tokenizers that cut a text at the same places have the same pre-tokenizer, whatever their tokens.
"""

from __future__ import annotations

import difflib
from hashlib import sha256
from typing import TYPE_CHECKING

from quantkit.errors import TokenizerError
from quantkit.tokenizer import pre_tokenizer_spellings, wordpiece
from quantkit.tokenizer.pre_tokenizer_hashes import CHECK_TEXT, HASHES
from quantkit.tokenizer.pre_tokenizer_patterns import NAMES, OTHER_NAMES, SPLITS, SplitPattern

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.pre_tokenizers import PreTokenizer

# What the splits treat differently: contractions in both cases, runs of digits of every length,
# capitals inside words, marks, scripts, runs of spaces and newlines, punctuation next to them all
PROBE = (
    "I've TOLD you're we'll 'Tis IT'S DON'T o'clock 'd he'D\n\n\n 1 12 123 1234 12345 "
    "1234567.89 ٣٤٥６７８９ x²³ Ⅳ½ 2nd3rd4 HelloWORLDabc camelCase ABCdef ÉCOLEété "
    "ǅungla\r\n\r\n\ttab\t\ttabs   three spaces     five \n  \n   mixed  \n\nफ़ॉन्ट हिन्दी "
    "ภาษาไทย កម្ពុជា বাংলা e\u0301a\u0302 "
    "我想在apple工作1314天～、。日本語カタカナひらがな한국어 텍스트 тест Ελληνικά عربى "
    "🦙🦙😶\u200d🌫\ufe0f ✅ $5 +1 <tag> a=b x^2 ~/path/to/file.py `code` |pipe| foo_bar "
    "__init__ (a) [b]{c} ...!!! !!/\n//\n?? \"quoted\" “quotes” a.b,c;d:e #hash @at %percent "
    "&and *star -dash--- ===== http://x.yz/ω.html\u00a0nbsp\u3000wide  \nl'dopa d'Mello "
    "rock'n'roll'S two  12 digits   345 seven       spaces 'twas\n!a $b (c /d 'e ¡f ㄅㄆㄇ "
    "ᄀᄁ ，中文，标点：；（）《》 no.１２３ <sentinel:12> x  \n end  "
    # each contraction before letters, which it is cut from or not; line ends of all kinds behind
    # letters, marks and spaces; letters behind numbers that are no digits
    "a'sb a'tb a'reb a'veb a'mb a'llb a'db A'SB A'TB A'REB A'VEB A'MB A'LLB A'DB a\rb\r\rc !\r\nd "
    ".\r\re,\n\r\nf  \r g \r\n h\r \ri \n\r j \t\r\n\tk Ⅳabc ²x ½y ٣a １b 1c\n"
)  # fmt: skip


def find_pre(tokenizer: Tokenizer, family: str = "", architecture: str = "") -> tuple[str, str]:
    """llama.cpp's name for how a byte-level `tokenizer` splits text, and why that one.

    In this order: the hash that llama.cpp knows; `family`, the one name that it knows for the
    checkpoints of this `architecture`; the split. Raises TokenizerError if none tells.
    """
    if name := _by_hash(tokenizer):
        return name, "by the hash that llama.cpp knows"
    alike = _by_split(tokenizer)
    if family:
        why = f"llama.cpp's for {architecture}"
        if alike and all(family not in split.names for split in alike):
            other = _chosen(alike, tokenizer)
            why += f", though tokenizer.json splits as {other} does (--pre {other} follows it)"
        return family, why
    if alike:
        name = _chosen(alike, tokenizer)
        others = [n for split in alike for n in split.names if n != name][:2]
        same = f", and so do {' and '.join(others)}" if others else ""
        return name, f"it splits text as tokenizer.json does{same}"
    nearest, why = _nearest(tokenizer)
    raise TokenizerError(
        "no pre-tokenizer of llama.cpp splits text as tokenizer.json does; the nearest is "
        f"{nearest.names[0]} ({why}); name one with --pre"
    )


def find_words_pre(tokenizer: Tokenizer) -> tuple[str, str]:
    """The name for a WordPiece `tokenizer`, and why that one: llama.cpp splits all alike."""
    if name := _by_hash(tokenizer):
        return name, "by the hash that llama.cpp knows"
    return wordpiece.PRE, "WordPiece, of which llama.cpp does not read it"


def known_pre(name: str, words: bool = False, of_bytes: bool = True) -> str:
    """`name`, if llama.cpp knows a pre-tokenizer of such a vocabulary by it: of `words`
    (WordPiece), or of bytes. Raises TokenizerError."""
    if name in (wordpiece.PRE_NAMES if words else NAMES) or (
        name in OTHER_NAMES and not of_bytes and not words
    ):
        return name
    if name in OTHER_NAMES:
        raise TokenizerError(f"pre-tokenizer '{name}' is not one for byte-level vocabularies")
    near = difflib.get_close_matches(name, NAMES, n=3)
    hint = f"; did you mean {' or '.join(near)}?" if near else f"; it knows {', '.join(NAMES)}"
    raise TokenizerError(f"llama.cpp knows no pre-tokenizer '{name}'{hint}")


def _by_hash(tokenizer: Tokenizer) -> str | None:
    """The name for the ids of the check text: alone, or with special tokens around them as the
    library or transformers (`add_bos_token`, `add_eos_token`) put them."""
    plain = tokenizer.encode(CHECK_TEXT, add_special_tokens=False).ids
    special = [i for i, t in tokenizer.get_added_tokens_decoder().items() if t.special]
    ids, rest = tokenizer.encode(CHECK_TEXT).ids, f", {str(plain)[1:]}"  # special ones may be many
    texts = (str(ids), *(f"[{i}{rest}" for i in special), str(plain)) if plain else (str(ids),)
    hashes = (sha256(text.encode()).hexdigest() for text in texts)
    return next((HASHES[h] for h in hashes if h in HASHES), None)


def _by_split(tokenizer: Tokenizer) -> list[SplitPattern]:
    """The rows that split the probe as the tokenizer does, and every other character too."""
    step = tokenizer.pre_tokenizer
    alike = _alike_in_probe(step)
    spelled = pre_tokenizer_spellings.patterns_of(step)
    return [s for s in alike if spelled == s.patterns or not _cut_otherwise(step, s)]


def _alike_in_probe(step: PreTokenizer | None) -> list[SplitPattern]:
    cuts = _cuts(step)
    return [split for split in SPLITS if _cuts(_splitter(split)) == cuts]


def _cut_otherwise(step: PreTokenizer | None, split: SplitPattern) -> str:
    """A character at which the row cuts otherwise; empty if there is none."""
    row = _splitter(split)
    for part in pre_tokenizer_spellings.every_character(step):
        text = "".join(map(pre_tokenizer_spellings.around, part))
        if _cuts(step, text) != _cuts(row, text):
            for c in part:
                text = pre_tokenizer_spellings.around(c)
                if _cuts(step, text) != _cuts(row, text):
                    return c
            return part[0]
    return ""


def _chosen(alike: list[SplitPattern], tokenizer: Tokenizer) -> str:
    """One name of rows that split alike: by how merges are used and how text is normalized."""
    ignores = bool(getattr(tokenizer.model, "ignore_merges", False))
    split = next((s for s in alike if s.ignore_merges == ignores), alike[0])
    return split.nfc if split.nfc and "NFC" in repr(tokenizer.normalizer) else split.names[0]


def _nearest(tokenizer: Tokenizer) -> tuple[SplitPattern, str]:
    """The row with the most cuts in common, and how near it is."""
    step = tokenizer.pre_tokenizer
    for split in _alike_in_probe(step):
        c = _cut_otherwise(step, split)
        return split, f"which cuts otherwise at U+{ord(c):04X}"
    cuts = _cuts(step)

    def likeness(split: SplitPattern) -> float:
        other = _cuts(_splitter(split))
        return len(cuts & other) / len(cuts | other)

    best = max(SPLITS, key=likeness)
    return best, f"{likeness(best):.0%} of the cuts in a test text are its own"


def _splitter(split: SplitPattern) -> PreTokenizer:
    from tokenizers import Regex, pre_tokenizers

    return pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(p), "isolated") for p in split.patterns]
    )


def _cuts(splitter: PreTokenizer | None, text: str = PROBE) -> frozenset[int]:
    """Where a pre-tokenizer cuts a text: the first character of each piece."""
    if splitter is None:
        return frozenset({0})
    return frozenset(start for _, (start, _) in splitter.pre_tokenize_str(text))
