"""quantkit: from a checkpoint to released GGUF files, byte for byte as llama.cpp makes them."""

__version__ = "0.1.0"
