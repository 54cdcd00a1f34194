"""`python -m bench` is the console script `sparsebench`."""

from __future__ import annotations

from bench.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
