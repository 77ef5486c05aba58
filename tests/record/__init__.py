"""Record what llama.cpp makes of a small checkpoint: the goldens that the tests compare with."""


class RecordError(Exception):
    """What cannot be recorded or compared, in one line."""
