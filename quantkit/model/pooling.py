"""Rerankers and embedding models: what llama.cpp's converter writes because of other files than
config.json (`conversion/base.py`, _try_set_pooling_type; `conversion/qwen.py`, Qwen3Model).

`modules.json`, as sentence-transformers writes it, names the folder with the kind of pooling. A
Qwen3 reranker is known by the name of its directory or the heading of its model card; it scores by
the rows of its head for "yes" and "no".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from quantkit.architectures.pooled import POOLING, POOLING_KEYS
from quantkit.architectures.rules import Architecture, Config
from quantkit.errors import ConfigError, CorruptFile, SourceNotFound, TensorMissing, TokenizerError
from quantkit.gguf.types import type_by_name
from quantkit.model.placement import Placed
from quantkit.source.checkpoint import read_weights
from quantkit.source.checkpoint_files import CheckpointFiles
from quantkit.source.codings import read
from quantkit.source.segments import Segment
from quantkit.source.tensors import Files, SourceTensor
from quantkit.storage.parse import parse_json

if TYPE_CHECKING:
    from gguf import GGUFWriter

MEAN, CLS, LAST, RANK = 1, 2, 3, 4  # llama.h `llama_pooling_type`
_MODES = {"mean": MEAN, "cls": CLS, "lasttoken": LAST}
_FLAGS = {"pooling_mode_mean_tokens": MEAN, "pooling_mode_cls_token": CLS,
          "pooling_mode_lasttoken": LAST}  # fmt: skip
_RERANKERS = ("qwen3-reranker", "qwen3-vl-reranker")
HEAD, MATRIX = "cls.output.weight", "linear.weight"
# what a classifier has before its last matrix, and llama.cpp does not run
_HEADS = {"DistilBertForSequenceClassification": "the ReLU of its head (it takes tanh)"}
LABELS = ("yes", "no")  # rows of the head, in this order
_TEMPLATE = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and "
    'the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
    "<|im_start|>user\n<Instruct>: Given a web search query, retrieve relevant passages that "
    "answer the query\n<Query>: {query}\n<Document>: {document}<|im_end|>\n"
    "<|im_start|>assistant\n<think>\n\n</think>\n\n"
)


def is_reranker(files: CheckpointFiles, arch: Architecture, config: Config) -> bool:
    """Whether a Qwen3 is a reranker, as llama.cpp's converter sees it."""
    if arch.gguf_arch not in ("qwen3", "qwen3vl"):
        return False
    card = files.text("README.md").lower() if files.has("README.md") else ""
    hints = (files.name, config.find("_name_or_path"), config.find("model_type"))
    return any(
        f"# {name}" in card or any(name in str(hint).lower() for hint in hints)
        for name in _RERANKERS
    )


def pooled(files: CheckpointFiles, arch: Architecture, config: Config) -> Config:
    """The config with what its files say of pooling. Raises ConfigError, CorruptFile."""
    kind = RANK if is_reranker(files, arch, config) else _pooling_type(files)
    return replace(config, values={**config.values, POOLING: kind})


def add_reranker(
    writer: GGUFWriter, files: CheckpointFiles, arch: Architecture, config: Config
) -> list[str]:
    """Add the other keys of a Qwen3 reranker; lines for people."""
    if config.find(POOLING) is not None and POOLING_KEYS[0] not in arch.late_keys:
        return [
            f"the checkpoint pools its outputs (modules.json), and llama.cpp's converter does not "
            f"write that for {arch.gguf_arch}: choose it when the file is run (--pooling)"
        ]
    name = str(config.values["architectures"][0])
    if name in _HEADS:
        return [
            f"llama.cpp scores without {_HEADS[name]}, as its converter leaves it: the scores are "
            "not those of the checkpoint"
        ]
    if not is_reranker(files, arch, config):
        return []
    writer.add_array(f"{writer.arch}.classifier.output_labels", LABELS)
    writer.add_string("tokenizer.chat_template.rerank", _TEMPLATE)
    writer.add_array("tokenizer.chat_templates", ["rerank"])
    return ["a Qwen3 reranker, by its name or card: its head scores 'yes' against 'no'"]


def _pooling_type(files: CheckpointFiles) -> int | None:
    """What modules.json and the file that it names, or embedding_config.json, say."""
    if not files.has("modules.json"):
        embedding = (files.optional("embedding_config.json") or {}).get("pooling")
        if embedding not in (None, "last_token"):
            raise ConfigError(
                f"{files.label('embedding_config.json')}: pooling is {embedding!r}; "
                "'last_token' is read"
            )
        return LAST if embedding else None
    folder = _pooling_folder(files)
    if folder is None:
        return None
    name = f"{folder}/config.json" if folder else "config.json"
    pooling: Mapping[str, Any] = files.json(name)
    found = next((kind for flag, kind in _FLAGS.items() if pooling.get(flag)), None)
    mode = pooling.get("pooling_mode")
    if found is None and isinstance(mode, str):
        found = _MODES.get(mode)
    if found is None:
        raise ConfigError(f"{files.label(name)}: pooling by mean, cls or last token is read")
    return found


def _pooling_folder(files: CheckpointFiles) -> str | None:
    return next((folder for kind, folder in _modules(files) if kind.endswith("Pooling")), None)


def _modules(files: CheckpointFiles) -> list[tuple[str, str]]:
    """The kind and the folder of each module that modules.json lists. Raises CorruptFile."""
    label = files.label("modules.json")
    try:
        modules = parse_json(files.data("modules.json"), label)
        found = [(str(m["type"]), str(m["path"])) for m in modules]
    except (TypeError, KeyError) as e:
        raise CorruptFile(f"{label}: not a list of modules ({type(e).__name__}: {e})") from None
    for _, folder in found:
        if ".." in folder or folder.startswith("/"):
            raise CorruptFile(f"{label}: {folder!r} points outside the checkpoint's directory")
    return found


def dense_modules(files: CheckpointFiles, arch: Architecture) -> dict[str, SourceTensor]:
    """EmbeddingGemma's matrices after the pooled output, as GGUF calls them. Raises ConfigError,
    CorruptFile, SourceNotFound."""
    found = _modules(files) if files.has("modules.json") else []
    folders = [folder for kind, folder in found if kind.endswith("Dense")]
    if arch.gguf_arch != "gemma-embedding" or not folders:
        raise ConfigError(
            f"{files.where}: no dense modules that llama.cpp runs after {arch.gguf_arch}"
        )
    out: dict[str, SourceTensor] = {}
    for folder in folders:
        config: Mapping[str, Any] = files.json(f"{folder}/config.json")
        if config.get("bias") or not str(config.get("activation_function")).endswith("Identity"):
            raise ConfigError(
                f"{files.label(folder)}: a bias or an activation, and llama.cpp runs a matrix alone"
            )
        name = f"{folder}/model.safetensors"
        if (file := files.weight(name)) is None:
            raise SourceNotFound(f"{files.label(name)} is not there: download the checkpoint whole")
        target = "dense_2.weight" if folder == "2_Dense" else "dense_3.weight"
        source = next((t for t in read_weights(file) if t.name == MATRIX), None)
        if source is None:
            raise TensorMissing(f"{files.label(name)}: no tensor {MATRIX} is in it")
        out[target] = replace(source, name=target)
    return out


def dense_values(modules: Mapping[str, SourceTensor]) -> dict[str, int]:
    """The widths of dense modules, by the names of their keys."""
    shapes = {name.partition(".")[0]: t.shape for name, t in modules.items()}
    return {
        f"{name}_feat_{way}": n
        for name, shape in shapes.items()
        for way, n in zip(("out", "in"), shape, strict=True)
    }


def with_head(
    placed: Placed, sources: dict[str, SourceTensor], files: CheckpointFiles, config: Config
) -> Placed:
    """The tensors with a reranker's head: two rows of the embedding where that is the output too
    (it stands before it), else of the output, in its place. Adds to `sources`. Raises
    TokenizerError: the vocabulary lacks a label."""
    tied = bool(config.find("tie_word_embeddings"))
    name = "token_embd.weight" if tied else "output.weight"
    if name not in placed:
        raise ConfigError(f"{files.where}: a reranker without {name}")
    _, (segment, *_) = placed[name]
    source = sources[segment.source]
    with Files([part.path for part in source.parts or (source,)]) as opened:
        rows = [
            read(opened, source, i, 1) for i in _label_ids(files, source.n_rows)
        ]  # bfloat16, float16 or float32
    data = np.concatenate(rows).astype(np.float32)
    head = replace(
        source,
        name=HEAD,
        ggml=type_by_name("F32"),
        shape=data.shape,
        data=data,
        parts=(),
        coding="",
        raw="",
    )
    out: Placed = {}
    for other, where in placed.items():
        if other == name:
            out[HEAD] = (data.shape, (Segment(HEAD, 0, 0, len(LABELS)),))
            if not tied:
                continue
        out[other] = where
    sources[HEAD] = head
    if not tied:
        del sources[segment.source]
    return out


def _label_ids(files: CheckpointFiles, n_vocab: int) -> list[int]:
    vocab = (files.optional("tokenizer.json") or {}).get("model", {}).get("vocab")
    if vocab is None:
        vocab = files.optional("vocab.json")
    ids = [vocab.get(label) if isinstance(vocab, dict) else None for label in LABELS]
    if not all(isinstance(i, int) and 0 <= i < n_vocab for i in ids):
        raise TokenizerError(
            f"{files.where}: a reranker scores the tokens 'yes' and 'no', which its vocabulary "
            "lacks; rename the directory if it is none"
        )
    return [int(i) for i in ids if i is not None]
