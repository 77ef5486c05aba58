"""The commands: options become one call, nothing else. `cli.py` lists them."""
