"""What most encoders share: the keys of llama.cpp's converter, in its order (`conversion/base.py`,
MmprojModel.set_gguf_parameters), kinds of layers, and row maps that recur."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from quantkit.architectures.rules import (
    Config,
    Dim,
    Dims,
    Key,
    Map,
    Piece,
    RowMap,
    Shape,
    linear,
    parts,
    piece,
    reading,
    whole,
)
from quantkit.errors import ConfigError, TensorMissing

VISION, AUDIO = "vision_config", "audio_config"
V, A = "v.blk.{bid}", "a.blk.{bid}"
LAYERS = (
    "n_layers", "num_hidden_layers", "n_layer", "num_layers", "depth", "layers", "encoder_layers",
    "vt_num_hidden_layers",
)  # fmt: skip
# convolutions over the pixels: they stay in 16 bits in a file of F16, and in 32 in any other
KERNELS = (
    (r"v\.patch_embd\.weight.*", "kernel"),
    (r"mm\.patch_merger\.weight", "kernel"),
)


def vision(*names: str) -> tuple[str, ...]:
    """Keys of the table of the encoder of images."""
    return tuple(f"{VISION}.{name}" for name in names)


def audio(*names: str) -> tuple[str, ...]:
    """Keys of the table of the encoder of sound."""
    return tuple(f"{AUDIO}.{name}" for name in names)


def sees(config: Config) -> bool:
    """Whether there is an encoder of images."""
    return isinstance(config.find(VISION), dict)


def hears(config: Config) -> bool:
    """Whether there is an encoder of sound."""
    return isinstance(config.find(AUDIO), dict)


def count(config: Config, part: str) -> int:
    """The layers of an encoder, 0 where there is none. Raises ConfigError."""
    if not isinstance(config.find(part), dict):
        return 0
    return config.one(*(f"{part}.{name}" for name in LAYERS))


KINDS: dict[str, Callable[[Config, int], bool]] = {
    "vision": lambda c, bid: bid < count(c, VISION),
    "audio": lambda c, bid: bid < count(c, AUDIO),
    "sees": lambda c, bid: sees(c),
    "hears": lambda c, bid: hears(c),
}


def floats(where: str, name: str, value: Any) -> list[float]:
    """Three numbers, one a colour. Raises ConfigError."""
    if not isinstance(value, list) or not all(
        isinstance(x, int | float) and not isinstance(x, bool) for x in value
    ):
        raise ConfigError(f"{where}: '{name}' is {value!r}, not a list of numbers")
    if len(value) < 3:
        raise ConfigError(f"{where}: '{name}' is {value!r}; llama.cpp wants a value a colour")
    return [float(x) for x in value]


def pixels(name: str) -> Callable[[Config], Any]:
    """A value of the preprocessor's, one a colour."""

    def read(config: Config) -> list[float]:
        where = config.where.replace("config.json", "preprocessor_config.json")
        value = config.find(f"preprocessor.{name}")
        if value is None:
            raise ConfigError(
                f"{where}: '{name}' is missing, with which pixels are scaled; get the file (or "
                "processor_config.json) from where the model is from"
            )
        return floats(where, name, value)

    return read


def seen(key: Key) -> Key:
    """The key, where there is an encoder of images."""
    return Key(key.name, lambda c: key.read(c) if sees(c) else None, key.kind)


def heard(key: Key) -> Key:
    """The key, where there is an encoder of sound."""
    return Key(key.name, lambda c: key.read(c) if hears(c) else None, key.kind)


TEXT_WIDTH = ("text_config.hidden_size", "text_config.n_embd")

VISION_KEYS = (
    Key("clip.has_vision_encoder", lambda c: True, "BOOL"),
    Key("clip.vision.projection_dim", TEXT_WIDTH),
    Key("clip.vision.image_size", vision("image_size")),
    Key("clip.vision.patch_size", vision("patch_size")),
    Key("clip.vision.embedding_length", vision("hidden_size", "width", "vt_hidden_size")),
    Key("clip.vision.feed_forward_length", vision("intermediate_size", "vt_intermediate_size")),
    Key("clip.vision.block_count", lambda c: count(c, VISION)),
    Key("clip.vision.attention.head_count",
        vision("num_attention_heads", "num_heads", "heads", "vt_num_attention_heads")),
    Key("clip.vision.image_mean", pixels("image_mean"), "FLOAT32"),
    Key("clip.vision.image_std", pixels("image_std"), "FLOAT32"),
)  # fmt: skip

# of those that llama.cpp's converter takes for a Qwen: num_heads counts, whatever stands beside it
QWEN_KEYS = reading(VISION_KEYS, ".head_count", config=vision("num_heads", "num_attention_heads"))


def coloured(
    mean: Callable[[Config], list[float]], std: Callable[[Config], list[float]]
) -> tuple[Key, ...]:
    """VISION_KEYS, with what pixels are scaled by read in another way."""
    return reading(reading(VISION_KEYS, ".image_mean", config=mean), ".image_std", config=std)


def always(value: list[float]) -> Callable[[Config], list[float]]:
    """What no file says."""
    return lambda config: value


def pixels_or(name: str, default: list[float]) -> Callable[[Config], list[float]]:
    """A value of the preprocessor's, one a colour, which may leave it out."""

    def read(config: Config) -> list[float]:
        found = config.find(f"preprocessor.{name}")
        return default if found is None else floats(config.where, name, found)

    return read


def patch_convolution(dims: Dims, source: Shape, xid: int) -> Sequence[Piece]:
    """A matrix over the pixels of a patch as a convolution; its weights count as rows of one."""
    shape = (source[0], 3, dims["patch"], dims["patch"])
    return (piece("v.patch_embd.weight", shape, prod(shape)),)


AUDIO_KEYS = (
    Key("clip.has_audio_encoder", lambda c: True, "BOOL"),
    Key("clip.audio.projection_dim", TEXT_WIDTH),
    Key("clip.audio.embedding_length", audio("hidden_size")),
    Key("clip.audio.feed_forward_length", audio("intermediate_size")),
    Key("clip.audio.block_count", lambda c: count(c, AUDIO)),
    Key("clip.audio.attention.head_count", audio("num_attention_heads")),
)


def projector(name: str, part: str = "") -> Key:
    """What leads from the encoder to the text; `part` is vision or audio where there are both."""
    return Key(f"clip.{part and part + '.'}projector_type", lambda c: name, "STRING")


def flag(name: str) -> Key:
    """A key that is true."""
    return Key(name, lambda c: True, "BOOL")


def qkv(source: str, biased: bool = True) -> tuple[Map, Map]:
    """Query, key and value of a layer that sees, in one matrix: three tensors of it, and of its
    bias, which may be left out unless the layer is always `biased`."""

    def three(end: str) -> RowMap:
        return parts(*((f"{V}.attn_{part}.{end}", "v") for part in "qkv"))

    return (
        Map(f"{source}.weight", ("3v", "v"), three("weight"), "vision"),
        Map(f"{source}.bias", ("3v",), three("bias"), "vision", not biased),
    )


def activation(name: str, **default: Any) -> Key:
    """`clip.use_gelu` and the like, where the images' encoder has that activation."""

    def read(config: Config) -> bool | None:
        found: str = config.get(*vision("hidden_act"), kind="STRING", **default)
        return found.lower() == name or None

    return Key(f"clip.use_{name}", read, "BOOL")


def eps(names: Sequence[str], default: float = 1e-6, part: str = "vision") -> Key:
    """What norms add to a variance."""
    name = f"clip.{part}.attention.layer_norm_epsilon"
    return Key(name, tuple(names), "FLOAT32", default=default)


def pixel_count(end: str, cut: bool = False) -> Key:
    """The fewest or the most pixels of an image, `end` is min or max; `cut`: a float counts too, as
    its whole part."""

    def read(config: Config) -> Any:
        value = config.get(f"preprocessor.{end}_pixels", kind="NUMBER" if cut else "UINT32")
        return int(value)

    return Key(f"clip.vision.image_{end}_pixels", read)


def scale_factor() -> Key:
    """Patches of a side that become one, where it is not the four of every Gemma 3."""

    def read(config: Config) -> int | None:
        tokens = config.one("preprocessor.image_seq_length", default=256)
        side = config.one(*vision("image_size")) // max(config.one(*vision("patch_size")), 1)
        factor = side // max(int(tokens**0.5), 1)
        return factor if factor not in (0, 4) else None

    return Key("clip.vision.projector.scale_factor", read)


def width(*names: str) -> Dim:
    """A dimension that the encoder of images has under one of these names."""
    return lambda c: c.one(*vision(*names))


def told(name: str, axis: int = 0) -> Dim:
    """A dimension that no config has: that of a tensor. Raises TensorMissing."""

    def read(config: Config) -> int:
        shape = config.values["shapes"].get(name)
        if shape is None or len(shape) <= axis:
            raise TensorMissing(f"{config.where}: tensor {name} is not in the checkpoint")
        n: int = shape[axis]
        return n

    return read


DIMS: dict[str, Dim] = {
    "one": lambda c: 1,
    "text": lambda c: c.one(*TEXT_WIDTH),
    "v": width("hidden_size", "width"),
    "3v": lambda c: 3 * c.one(*vision("hidden_size", "width")),
    "ffn": width("intermediate_size"),
    "heads": width("num_attention_heads", "num_heads"),
    "patch": width("patch_size"),
    "channels": lambda c: c.one(*vision("num_channels", "in_channels", "in_chans"), default=3),
    "time": lambda c: c.one(*vision("temporal_patch_size"), default=2),
}


def positions(config: Config) -> int:
    """Patches of an image of the encoder's size."""
    return (config.one(*vision("image_size")) // config.one(*vision("patch_size"))) ** 2


# the matrices of a convolution over two frames, a patch each
FRAMES = ("v", "channels", "time", "patch", "patch")


def frames() -> Map:
    """A convolution over two frames as one over each."""

    def pieces(dims: Dims, source: Shape, xid: int) -> Sequence[Piece]:
        out, channels, _, height, width = source
        shape = (out, channels, height, width)
        return [
            piece(role, shape, out * channels, at=at, step=2)
            for at, role in enumerate(("v.patch_embd.weight", "v.patch_embd.weight.1"))
        ]

    name = "visual.patch_embed.proj.weight"
    return Map(name, FRAMES, pieces, seen=("v", "channels", "time", "patch2"))


def channels_first(role: str, patch: str) -> RowMap:
    """Patches whose weights are kept pixel by pixel, colour by colour in each: as a convolution,
    which has them colour by colour. Their weights count as rows of one."""

    def pieces(dims: Dims, source: Shape, xid: int) -> Sequence[Piece]:
        side = dims[patch]
        order = tuple(i * 3 + colour for colour in range(3) for i in range(side * side))
        shape = (source[0], 3, side, side)
        return (piece(role, shape, source[0] * source[1], order=order),)

    return pieces


def one_row(role: str, at: str) -> RowMap:
    """One row of a matrix, number `at`, as a vector."""

    def pieces(dims: Dims, source: Shape, xid: int) -> Sequence[Piece]:
        return (piece(role, source[-1:], 1, at=dims[at]),)

    return pieces


def lin(source: str, shape: tuple[str, ...], role: str, layers: str = "vision",
        bias: bool | None = True, rows: Callable[..., RowMap] = whole, *args: str,
        ) -> tuple[Map, ...]:  # fmt: skip
    """`linear` with a bias, in the layers of the encoder of images, unless it is said otherwise."""
    return linear(source, shape, role, rows, *args, layers=layers, bias=bias)
