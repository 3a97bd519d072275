"""`python -m xact` is `xact`."""

from xact.cli import main

if __name__ == "__main__":
    main()
