"""`python -m quantkit`: the command."""

from quantkit.cli import main

main()
