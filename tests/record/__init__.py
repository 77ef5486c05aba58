"""Record what llama.cpp makes of a small checkpoint: the goldens that the tests compare with."""
