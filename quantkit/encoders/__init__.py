"""The encoders that quantkit converts: of images and of sound, one family a file, listed here."""

from __future__ import annotations

from quantkit.encoders import (
    cogvlm,
    conformer,
    deepseek_ocr,
    deepseek_v4,
    dots3_note,
    dots_ocr,
    gemma,
    gemma3n,
    glm,
    granite,
    hunyuan_vl,
    intern_vl,
    janus,
    kimi_vl,
    llama4,
    minimax,
    muse_glimmer,
    omni,
    pixtral,
    qwen_vl,
    siglip,
    siglip2,
    step3_vl,
    whisper,
)
from quantkit.encoders.rules import Encoder
from quantkit.errors import UnsupportedArchitecture

ENCODERS: tuple[Encoder, ...] = (
    *cogvlm.FAMILY,
    *conformer.FAMILY,
    *deepseek_ocr.FAMILY,
    *deepseek_v4.FAMILY,
    *dots3_note.FAMILY,
    *dots_ocr.FAMILY,
    *gemma.FAMILY,
    *gemma3n.FAMILY,
    *glm.FAMILY,
    *granite.FAMILY,
    *hunyuan_vl.FAMILY,
    *intern_vl.FAMILY,
    *janus.FAMILY,
    *kimi_vl.FAMILY,
    *llama4.FAMILY,
    *minimax.FAMILY,
    *muse_glimmer.FAMILY,
    *omni.FAMILY,
    *pixtral.FAMILY,
    *qwen_vl.FAMILY,
    *siglip.FAMILY,
    *siglip2.FAMILY,
    *step3_vl.FAMILY,
    *whisper.FAMILY,
)

_BY_NAME = {name: encoder for encoder in ENCODERS for name in encoder.hf_names}
if len(_BY_NAME) != sum(len(encoder.hf_names) for encoder in ENCODERS):
    raise ValueError("two encoders claim the same name")


def supported_encoders() -> list[str]:
    """The `architectures` of config.json whose encoders can be converted, sorted."""
    return sorted(_BY_NAME)


def find_encoder(name: str) -> Encoder:
    """The encoder for a name from config.json. Raises UnsupportedArchitecture."""
    if name in _BY_NAME:
        return _BY_NAME[name]
    raise UnsupportedArchitecture(
        f"the encoder of {name!r} is not supported; those of {', '.join(supported_encoders())} are"
    )
