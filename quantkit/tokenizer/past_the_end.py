"""Special tokens whose ids lie past the vocabulary, as merges and cut embeddings leave them.

llama.cpp ignores such an id when it loads a file and takes its default for the kind, which is an
ordinary token in most vocabularies: answers end at a comma, or begin with a quotation mark. So none
is written, and a model keeps an end token that it has.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from typing import Any

from quantkit.errors import TokenizerError
from quantkit.source.checkpoint_files import CheckpointFiles
from quantkit.tokenizer.special_tokens import SpecialTokens, content, tokenizer_config

_WORDS = {"bos": "begin token", "eos": "end token"}


def left_out(
    special: SpecialTokens,
    tokens: Sequence[str],
    files: CheckpointFiles,
    fixed: Container[str] = (),
) -> list[str]:
    """Take ids past the `tokens` out of `special`, but for kinds that are `fixed`, and another end
    token if need be into it; lines for people on what was done. Raises TokenizerError: no end token
    is left."""
    n_vocab = len(tokens)
    for kind in [k for k, i in special.ids.items() if i >= n_vocab and k not in fixed]:
        special.past.setdefault(kind, special.ids.pop(kind))
    config, notes = tokenizer_config(files), []
    for kind, token_id in special.past.items():
        if kind in fixed and kind in special.ids:
            continue
        text = content(config.get(f"{kind}_token"))
        name = f"the {_WORDS.get(kind, f'{kind} token')} {text or 'of the config'} ({token_id})"
        why = f"{name} is past the model's {n_vocab} tokens"
        if kind == "eos" and kind not in special.ids:
            found = next((i for i in _end_tokens(files) if 0 <= i < n_vocab), None)
            if found is None:
                raise TokenizerError(
                    f"{files.where}: {why}, and neither generation_config.json nor config.json has "
                    "another; name one as eos_token_id in generation_config.json"
                )
            special.ids[kind] = found
        if kind in special.ids:
            other = special.ids[kind]
            notes.append(f"{why}; {tokens[other]} ({other}), which other files name, is taken")
        elif special.add.get(kind):
            special.add[kind] = False
            notes.append(f"{why}; none is added to a text")
        else:
            notes.append(f"{why} and left out")
    if "eos" not in special.ids:
        listed = ", ".join(str(i) for i in dict.fromkeys(_end_tokens(files)))
        notes.append(
            f"no file names one end token{f' (listed: {listed})' if listed else ''}: none is "
            "written, as by llama.cpp's converter, and llama.cpp takes its default"
        )
    return notes


def _end_tokens(files: CheckpointFiles) -> Iterator[int]:
    """The ids that end a text, as generation_config.json and config.json list them."""
    configs: list[Any] = [files.generation(), files.optional("config.json")]
    configs.append((configs[1] or {}).get("text_config"))
    for config in configs:
        value = config.get("eos_token_id") if isinstance(config, dict) else None
        for token_id in value if isinstance(value, list) else [value]:
            if isinstance(token_id, int) and not isinstance(token_id, bool):
                yield token_id
