"""`python -m xact` is `xact`."""

from xact.cli_main import main

if __name__ == "__main__":
    main()
