"""`python -m quantkit`: the command."""

from quantkit.cli import main

if __name__ == "__main__":
    main()
