"""`python -m feddkd` is `feddkd`."""

from feddkd.cli import main

if __name__ == "__main__":
    main()
