"""The tokens that llama.cpp begins and ends a text with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quantkit.loading.vocabulary import begins, usual_id
from quantkit.tokenizer.token_types import TokenType

if TYPE_CHECKING:
    from quantkit.tokenizer.vocabulary import Vocabulary

_WORDS = {"bos": "begin", "eos": "end"}


def edges(vocab: Vocabulary) -> dict[str, str]:
    """Their texts, by "bos" and "eos".

    Where no file names such a token, and the one that llama.cpp takes instead is an ordinary one
    (11, a comma in most vocabularies), `vocab` is changed: its flag says that none is added, and a
    line tells of it.
    """
    add = {**vocab.first_add, **vocab.special.add, **vocab.late_add}
    ids = {**vocab.special.ids, **vocab.late_ids}
    wanted = {"bos": begins(vocab.model, vocab.pre, add.get("bos")), "eos": add.get("eos", False)}
    put = {}
    for kind in (kind for kind, is_wanted in wanted.items() if is_wanted):
        i = ids.get(kind, usual_id(kind, vocab.model, vocab.pre))
        text = vocab.tokens[i] if i is not None and i < len(vocab.tokens) else None
        if kind in ids or (i is not None and text and vocab.types[i] == TokenType.CONTROL):
            put[kind] = text or ""
        elif vocab.model in ("gpt2", "llama"):
            flags = vocab.late_add if kind in vocab.late_add else vocab.special.add
            flags[kind] = False
            instead = "" if text is None else f", and llama.cpp would take {text!r} ({i})"
            vocab.notes.append(
                f"no file names a token to {_WORDS[kind]} a text with{instead}: none is added"
            )
    return put
