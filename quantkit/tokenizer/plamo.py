"""PLaMo's vocabularies: a line of JSON for each token, with its score and its type. llama.cpp:
`conversion/base.py`, _set_vocab_plamo.
"""

from __future__ import annotations

from quantkit.errors import TokenizerError
from quantkit.source.checkpoint_files import CheckpointFiles
from quantkit.storage.parse import parse_json
from quantkit.tokenizer.sentencepiece import Pieces
from quantkit.tokenizer.special_tokens import SpecialTokens, tokenizer_config
from quantkit.tokenizer.token_types import TokenType

FILE = "tokenizer.jsonl"
# its tokenizer class -> tokenizer.ggml.model
MODELS = {"Plamo2Tokenizer": "plamo2", "Plamo3Tokenizer": "plamo3"}
# parts of tags of the third, which stand for themselves
_PARTS = ("<|plamo:begin_", "<|plamo:end_", ":plamo|>")
_TYPES = {
    "UNKNOWN": TokenType.UNKNOWN,
    "CONTROL": TokenType.CONTROL,
    "BYTE": TokenType.BYTE,
}


def model(files: CheckpointFiles) -> str:
    """tokenizer.ggml.model. Raises TokenizerError."""
    found = tokenizer_config(files).get("tokenizer_class")
    if found not in MODELS:
        raise TokenizerError(
            f"{files.label('tokenizer_config.json')}: tokenizer_class is {found!r}; "
            f"{' and '.join(MODELS)} are read"
        )
    return MODELS[found]


def read(files: CheckpointFiles, size: int | None) -> Pieces:
    """The tokens, padded to `size`. Raises TokenizerError."""
    if not files.has(FILE):
        raise TokenizerError(f"{files.where}: {FILE} is not there")
    table, label = Pieces([], [], []), files.label(FILE)
    third = model(files) == "plamo3"
    for n, line in enumerate(files.data(FILE).decode("utf-8", "replace").split("\n"), 1):
        if not line.strip():
            continue
        match parse_json(line.encode(), f"{label}: line {n}"):
            case [str(token), int() | float() as score, *rest]:
                named = bool(token.startswith("<|plamo:") and token.endswith("|>"))
                plain = TokenType.CONTROL if named else TokenType.NORMAL
                kind = _TYPES.get(str(rest[0]), plain) if rest else plain
                if token in _PARTS and third:
                    kind = TokenType.NORMAL
                table.tokens.append(token)
                table.scores.append(float(score))
                table.types.append(int(kind))
            case _:
                raise TokenizerError(f"{label}: line {n} is not a token and its score")
    padding = max((size or 0) - len(table.tokens), 0)
    table.tokens += [f"[PAD{i}]" for i in range(1, padding + 1)]
    table.scores += [-1000.0] * padding
    table.types += [int(TokenType.UNUSED)] * padding
    if size is not None and len(table.tokens) > size:
        raise TokenizerError(f"{label}: {len(table.tokens)} tokens, and the model has {size}")
    return table


def special(files: CheckpointFiles, tokens: list[str], end_of_turn: str) -> SpecialTokens:
    """Ids and flags, of tokenizer_config.json alone. Raises TokenizerError."""
    config, place = tokenizer_config(files), {t: i for i, t in reversed([*enumerate(tokens)])}
    wanted = {kind: config.get(f"{kind}_token") for kind in ("bos", "eos", "pad", "sep", "unk")}
    named = {kind: token for kind, token in wanted.items() if token is not None}
    named["eot"] = end_of_turn
    if lost := [token for token in named.values() if token not in place]:
        raise TokenizerError(f"{files.label(FILE)}: {lost[0]!r} is no token of it")
    found = SpecialTokens({kind: place[token] for kind, token in named.items()})
    found.add = {
        kind: bool(flag)
        for kind in ("bos", "eos")
        if (flag := config.get(f"add_{kind}_token")) is not None
    }
    return found
