"""`python -m xact` is `xact`."""

from xact.cli.main import main

if __name__ == "__main__":
    main()
