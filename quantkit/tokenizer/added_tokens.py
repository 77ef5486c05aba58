"""What transformers adds to a tokenizer.json as it loads one: the tokens that the files beside it
list or name, and those of its class (`class_tokens.py`).

Ids are the tokenizers library's: a text that is a piece keeps its id, any other gets the next after
the last, whatever id the files state.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from quantkit.errors import TokenizerError
from quantkit.source.checkpoint_files import CheckpointFiles
from quantkit.tokenizer.class_tokens import class_tokens
from quantkit.tokenizer.special_tokens import TYPES, content, tokenizer_config

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer


_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def add_configured(hf: Tokenizer, files: CheckpointFiles) -> None:
    """Add the tokens of the files beside tokenizer.json in transformers' order: those with ids,
    then special tokens by name (`TokenizersBackend`, `_from_pretrained`). What is special by name
    is so whatever the files say of the token (transformers 4, which llama.cpp's converter uses)."""
    from tokenizers import AddedToken

    config = tokenizer_config(files)
    decoder = config.get("added_tokens_decoder")
    if not isinstance(decoder, dict):
        config = _with_map(config, files.optional("special_tokens_map.json") or {})
    defaults = class_tokens(config, files.optional("config.json") or {})
    names = dict.fromkeys(_named({**defaults, **config}))  # in their order
    present = {repr(t) for t in hf.get_added_tokens_decoder().values()}
    if isinstance(decoder, dict):
        entries = sorted(decoder.items(), key=lambda item: int(item[0]))
        tokens = [
            AddedToken(e["content"], **{f: bool(e[f]) for f in _FLAGS if f in e})
            for _, e in entries
        ]
        hf.add_tokens([t for t in tokens if repr(t) not in present])
    else:
        # of two texts of one id the last counts
        ids, own = files.optional("added_tokens.json") or {}, hf.get_added_tokens_decoder()
        hf.add_tokens(
            [
                AddedToken(token, normalized=token not in names, special=token in names)
                for i, token in sorted({i: token for token, i in ids.items()}.items())
                if i not in own  # what tokenizer.json says of a token counts
            ]
        )
    known = {t.content for t in hf.get_added_tokens_decoder().values()}
    hf.add_tokens([AddedToken(t, special=True) for t in names if t not in known])
    added = hf.get_added_tokens_decoder().values()
    hf.add_special_tokens([t for t in added if t.content in names and not t.special])


def _with_map(config: dict[str, Any], beside: dict[str, Any]) -> dict[str, Any]:
    """What a special_tokens_map.json says before a tokenizer_config.json; the lists of further
    tokens of both."""
    name = "additional_special_tokens"
    one, other = config.get(name), beside.get(name)
    both = {name: one + other} if isinstance(one, list) and isinstance(other, list) else {}
    return {**config, **beside, **both}


def _named(config: dict[str, Any]) -> list[str]:
    """The texts of the special tokens that a tokenizer_config.json names. Further ones are a list
    of transformers 5, or a list and a table of names of version 4. Raises TokenizerError where one
    is no text."""
    for kind in TYPES:
        entry = config.get(f"{kind}_token")
        if entry is not None and not isinstance(content(entry), str):
            raise TokenizerError(f"{kind}_token of tokenizer_config.json is {entry!r}, no text")
    entries = [config.get(f"{kind}_token") for kind in TYPES]
    extra = config.get("extra_special_tokens")
    names = ("additional_special_tokens", "extra_special_tokens")
    for name in names[1:] if extra and isinstance(extra, list) else names:
        value = config.get(name) or []
        more = list(value.values()) if isinstance(value, dict) else value
        if not isinstance(more, list) or not all(isinstance(content(e), str) for e in more):
            raise TokenizerError(f"{name} of tokenizer_config.json is {value!r}, no list of texts")
        entries += more
    texts = (e.get("content") if isinstance(e, dict) else e for e in entries)
    return [t for t in texts if isinstance(t, str) and t]


def loaded(files: CheckpointFiles, tokenizer: Mapping[str, Any]) -> dict[int, AddedToken]:
    """The added tokens of a tokenizer.json of pieces by id, with those of the files beside it. Its
    steps are not taken; without a table of pieces there are none. Raises TokenizerError,
    CorruptFile."""
    from tokenizers import Tokenizer

    pieces = (tokenizer.get("model") or {}).get("vocab")
    if isinstance(pieces, list):
        pieces = {piece: i for i, (piece, _) in reversed([*enumerate(pieces)])}
    if not isinstance(pieces, dict):
        return {}
    pieces = {p: i for p, i in pieces.items() if isinstance(i, int) and 0 <= i < 1 << 31}
    steps = ("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder")
    model = {"type": "BPE", "vocab": pieces, "merges": []}
    added = [
        {"id": t["id"], "content": t["content"], **{f: bool(t.get(f)) for f in _FLAGS}}
        for t in tokenizer.get("added_tokens") or []
    ]
    bare = {"version": "1.0", **dict.fromkeys(steps), "added_tokens": added, "model": model}
    hf = Tokenizer.from_str(json.dumps(bare))
    add_configured(hf, files)
    found: dict[int, AddedToken] = hf.get_added_tokens_decoder()
    return found
