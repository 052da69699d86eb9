"""`python -m llueve` is the command line."""

from llueve.cli.main import main

if __name__ == "__main__":
    main()
