"""`python -m bench` is the console script `sparsebench`."""

from bench.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
