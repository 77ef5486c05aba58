"""Which tensors llama.cpp asks of each architecture, outside the blocks and in each of them. It
refuses a file that lacks one, and a file with one more ("wrong number of tensors").

`asked.txt` has a line for each of llama.cpp's architectures (b11549, `load_arch_tensors` of
`src/models/*.cpp`): its name, `ahead` if it asks for tensors of blocks that predict further tokens,
then groups between bars: tensors outside the blocks, a colon, tensors in a block. A group begins
with what it hangs on, in brackets: all of it has to hold, `!` denies, `with:` is another tensor of
the block. `.weight` is left out, a name that ends in a dot has no suffix, `#` is the number of a
layer, `*` stands for several names, of which the first or all others are there. What ends in `?`
need not be there; in `+`, not where a file has only the layers that predict, or only the others.
What need not be there for the loader, but is computed with all the same, is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from quantkit.gguf import tensor_names
from quantkit.loading.ahead import ALONE, unrun
from quantkit.loading.layers import recurrent
from quantkit.loading.patterns import RECURRENT_WITHOUT_KV, STEPS
from quantkit.loading.values import Info, Values, is_lite, listed, number, of_layers

_SEVERAL = {
    "*qkv": ("attn_qkv.weight", "attn_q.weight", "attn_k.weight", "attn_v.weight"),
    "*gate_up": ("ffn_gate_up_exps.weight", "ffn_gate_exps.weight", "ffn_up_exps.weight"),
}
_BIASES = ("attn_qkv.bias", "attn_q.bias", "attn_k.bias", "attn_v.bias")  # of `*qkv`
_SCALES = ("scale", "input_scale")
_SUFFIXES = (".bias", ".scale", ".scales", ".lora_a", ".lora_b")
# matrices that may have one factor more, whatever the architecture (llama-model.cpp, load_tensors)
_SCALED = frozenset({
    "attn_q", "attn_k", "attn_v", "attn_output", "attn_qkv", "attn_gate", "ffn_gate", "ffn_down",
    "ffn_up", "ffn_gate_shexp", "ffn_down_shexp", "ffn_up_shexp", "ffn_gate_exps", "ffn_down_exps",
    "ffn_up_exps", "ssm_in", "ssm_out", "ssm_alpha", "ssm_beta", "nextn.eh_proj",
    "nextn.shared_head_head", "output",
})  # fmt: skip

# conditions that hold where a number of the metadata is above zero; and where that of the layer is
_ABOVE_ZERO = {
    "decides": "decision.block_count",
    "mla": "attention.key_length_mla",
    "moe": "expert_count",
    "per_layer": "embedding_length_per_layer_input",
    "residual": "attn_res.block_size",
    "shared": "expert_shared_feed_forward_length",
    "shares": "expert_shared_count",
    "top_k": "attention.indexer.top_k",
    "values": "attention.value_expert_count",
}
_ABOVE_ZERO_HERE = {
    "ff": "feed_forward_length",
    "heads": "attention.head_count",
    "kv": "attention.head_count_kv",
}


class Asked(NamedTuple):
    """Tensors by their names without the block: those that may be there, and those that have to be,
    each as the ways in which it may be; `whole`, those that have to be in a whole model; `joined`,
    the names that stand for several."""

    may: frozenset[str] = frozenset()
    must: tuple[tuple[frozenset[str], ...], ...] = ()
    whole: tuple[tuple[frozenset[str], ...], ...] = ()
    joined: frozenset[str] = frozenset()

    def __add__(self, other: object) -> Asked:
        assert isinstance(other, Asked)
        return Asked(
            self.may | other.may,
            self.must + other.must,
            self.whole + other.whole,
            self.joined | other.joined,
        )


class Group(NamedTuple):
    """What is asked for where all of `when` holds."""

    when: tuple[str, ...]
    outside: Asked
    in_block: Asked


class Table(NamedTuple):
    """All groups of an architecture. `ahead`: whether it loads layers that predict."""

    ahead: bool
    groups: tuple[Group, ...]


@cache
def lines() -> dict[str, str]:
    """Architecture -> its line of `asked.txt`."""
    text = (Path(__file__).parent / "asked.txt").read_text()
    return {line.split(maxsplit=1)[0]: line for line in text.splitlines()}


@cache
def table(arch: str) -> Table:
    """What an architecture asks for, one of `lines`."""
    name, *columns = lines()[arch].split(" | ")
    return Table(name != arch, tuple(map(_group, columns)))


def _group(text: str) -> Group:
    when = ""
    if text.startswith("["):
        when, _, text = text[1:].partition("]")
    outside, _, in_block = text.partition(":")
    return Group(tuple(when.split(",")) if when else (), _asked(outside), _asked(in_block))


def _asked(words: str) -> Asked:
    found = Asked()
    for word in words.split():
        mark, name = word[-1:] if word[-1] in "?+" else "", word.rstrip("?+")
        first, *others = _SEVERAL.get(name, (_whole(name),))
        ways = (frozenset([first]), frozenset(others)) if others else (frozenset([first]),)
        more = _BIASES if name == "*qkv" else ()
        must = () if mark else (ways,)
        whole = (ways,) if mark == "+" else ()
        joined = frozenset([name] if others else [])
        found += Asked(frozenset([first, *others, *more]), must, whole, joined)
    return found


def _whole(name: str) -> str:
    if name.endswith(_SUFFIXES):
        return name
    return name.removesuffix(".") + ".weight" * (name[-1] != ".")


def does_without_head(arch: str) -> bool:
    """Whether llama.cpp takes the embedding where there is no head."""
    groups = [g.outside for g in table(arch).groups if not g.when] if arch in lines() else []
    head = frozenset(["output.weight"])
    return any(head <= g.may for g in groups) and not any((head,) in g.must for g in groups)


def faults(arch: str, values: Values, tensors: Sequence[Info]) -> Iterator[str]:
    """Tensors that are missing, and those that nobody asks for."""
    model = _Model(arch, values)
    there: dict[int | None, set[str]] = {None: set()}
    for t in tensors:
        name = tensor_names.parse(t.name)
        there.setdefault(name.bid, set()).add(_within(name))
    blocks = [bid for bid in there if bid is not None]
    if blocks and max(blocks) >= model.count:
        yield f"{arch}.block_count is {model.count}, and there are tensors of layer {max(blocks)}"
        return
    alone = model.ahead > 0 and blocks != [] and min(blocks) >= model.trunk
    if alone and arch not in ALONE:
        yield f"{arch}: layers that predict further tokens cannot be a file of their own"
    elif alone:
        yield from unrun(arch, values, tensors)
    asked = {bid: model.asked(bid, there.get(bid, set())) for bid in (None, *range(model.count))}
    for bid in (None, *(() if alone else range(model.trunk))):
        wanted = asked[bid]
        needed = (
            wanted.must or wanted.whole or (blocks and arch != "deci")
        )  # some are skipped there
        if bid is not None and bid not in there and needed:
            yield f"{arch}.block_count is {model.count}, and layer {bid} has no tensors"
            return
        if lost := _lost(wanted.must + (() if alone else wanted.whole), there.get(bid, set())):
            yield f"{tensor_names.in_block(lost, bid)} is not there"
            return
    yield from _unasked(model, asked, there, tensors)
    for bid in range(model.trunk, model.count) if model.predicts(there) else ():
        if lost := _lost(asked[bid].must + asked[bid].whole, there.get(bid, set())):
            yield f"{tensor_names.in_block(lost, bid)} is not there"
            return


def _lost(wanted: Sequence[tuple[frozenset[str], ...]], there: set[str]) -> str:
    """The first tensor that is missing."""
    for ways in wanted:
        if not any(way <= there for way in ways):
            return min(ways[-1] - there, key=lambda name: (len(name), name))
    return ""


def _unasked(
    model: _Model,
    asked: dict[int | None, Asked],
    there: dict[int | None, set[str]],
    tensors: Sequence[Info],
) -> Iterator[str]:
    may_be: dict[int | None, frozenset[str]] = {}
    for bid, names in there.items():
        may = asked[bid].may
        scaled = _SCALED & _stems(may & names)
        if bid is None or bid < model.trunk:  # what layers have that predict is skipped, not read
            may -= _beside(asked[bid].joined, names)
            may |= {f"{role}.{end}" for role in scaled for end in _SCALES}
        may_be[bid] = may
    parsed = [(t.name, tensor_names.parse(t.name)) for t in tensors]
    surplus = [name for name, n in parsed if _within(n) not in may_be[n.bid]]
    if surplus:
        yield f"{listed(surplus)}: llama.cpp asks for no such tensor of {model.arch}"


def _beside(joined: frozenset[str], there: set[str]) -> set[str]:
    """What is not asked for beside another: queries beside what is joined, and the other way."""
    out: set[str] = set()
    for name in joined:
        first, *others = _SEVERAL[name]
        if first in there:
            out |= {*others}
    if "*qkv" in joined:
        first, *others = _BIASES
        if "attn_qkv.weight" not in there:
            out.add(first)
        elif first in there:
            out |= {*others}
    return out


def _stems(names: Iterable[str]) -> set[str]:
    """Matrices by their roles."""
    return {name.removesuffix(".weight") for name in names if name.endswith(".weight")}


def _within(name: tensor_names.Name) -> str:
    """The name without its block; the number is a sharp where it stands further in."""
    if name.bid is not None:
        return name.role + name.suffix
    return re.sub(r"\bblk\.\d+\.", "blk.#.", str(name))


class _Model:
    """What holds of a model and its layers."""

    def __init__(self, arch: str, values: Values) -> None:
        self.arch, self.values = arch, values
        self.count = number(values, "block_count")
        if arch == "hrm_text":  # which runs its two stacks several times
            self.count = 2 * number(values, "hrm.layers_per_stack")
        # all of a draft's layers are counted so, and asked for as a model's own
        drafts = arch == "gemma4-assistant"
        self.ahead = 0 if drafts else number(values, "nextn_predict_layers")
        self.trunk = max(self.count - self.ahead, 0)
        self.recurrent = recurrent(arch, values)
        self._known: dict[tuple[bool | None, ...], Asked] = {}

    def predicts(self, there: dict[int | None, set[str]]) -> bool:
        """Whether the layers that predict are asked for: those of some architectures need not be
        there."""
        first = there.get(self.trunk, set())
        if self.arch in ALONE:
            return "nextn.eh_proj.weight" in first
        return self.arch != "dots3note"  # where any of them may be missing

    def asked(self, bid: int | None, there: set[str]) -> Asked:
        """What is asked for in a block, or outside them, where others are `there`. A condition that
        is not known may hold, and what hangs on it need not be there."""
        arch = table(self.arch)
        if bid is not None and bid >= self.trunk and not arch.ahead:
            return Asked()
        held = tuple(self._all(group.when, bid, there) for group in arch.groups)
        key = (bid is None, *held)
        if key not in self._known:
            found = Asked()
            for holds, group in zip(held, arch.groups, strict=True):
                part = group.outside if bid is None else group.in_block
                if holds is not False:
                    found += part if holds else Asked(part.may, joined=part.joined)
            self._known[key] = found
        return self._known[key]

    def _all(self, when: Sequence[str], bid: int | None, there: set[str]) -> bool | None:
        found = [self._holds(what, bid, there) for what in when]
        return False if False in found else None if None in found else True

    def _holds(self, what: str, bid: int | None, there: set[str]) -> bool | None:
        if what.startswith("!"):
            found = self._holds(what[1:], bid, there)
            return None if found is None else not found
        if what.startswith("with:"):
            return f"{what[5:]}.weight" in there
        values, i = self.values, bid or 0
        if what in _ABOVE_ZERO:
            return number(values, _ABOVE_ZERO[what]) > 0
        if what in _ABOVE_ZERO_HERE:
            return self._of(_ABOVE_ZERO_HERE[what], i) > 0
        lead = i < number(values, "leading_dense_block_count")
        match what:
            case "ahead":
                return i >= self.trunk
            case "lead":
                return lead
            case "lead_or_ahead":
                return lead or i >= self.trunk
            case "experts":
                step = next(s for s in STEPS[self.arch] if s.words == "has experts")
                every = number(values, step.key or "", step.step)
                return every > 0 and bool(step.kind(i, every))
            case "longrope":
                item = values.get("rope.scaling.type")
                return item is not None and item.value == "longrope"
            case "layers>=64":
                return self.trunk >= 64
            case "first":
                return i == 0
            case "hashed":
                return i < number(values, "hash_layer_count")
            case "compressed":
                return self._of("attention.compress_ratios", i) != 0
            case "indexed":
                return self._of("attention.compress_ratios", i) == 4
            case "q_rank":
                return number(values, "attention.q_lora_rank") > 0 and not is_lite(
                    self.arch, values
                )
            case "keys":
                return i < self.trunk - number(values, "attention.shared_kv_layers")
            case "latent":
                return any(
                    number(values, name) > 0 for name in ("moe_latent_size", "expert_latent_length")
                )
            case "ngrams":
                item = values.get("ple.layers")
                layers = item.value if item is not None and item.type == "ARRAY" else []
                return bool(layers) if bid is None else bid in layers
            case "indexes":
                return self._indexes(i)
            case "deciding":
                return i >= self.trunk - number(values, "decision.block_count")
            case "recurrent":
                return self._recurrent(i)
        return None

    def _recurrent(self, i: int) -> bool | None:
        if self.recurrent is None or i < len(self.recurrent):
            return None if self.recurrent is None else self.recurrent[i]
        if self.arch in RECURRENT_WITHOUT_KV and not self.arch.startswith("nemotron"):
            return not self._of("attention.head_count_kv", i)
        return False

    def _indexes(self, i: int) -> bool | None:
        if self.arch == "glm5-next" and i >= self.trunk:
            return True
        if "attention.indexer.types" not in self.values or i >= self.trunk:
            return None
        return self._of("attention.indexer.types", i) != 0

    def _of(self, key: str, i: int) -> int:
        return of_layers(self.values, key, i + 1)[i]
