"""`python -m k8sproxy`, the same as `k8sproxy`."""

from __future__ import annotations

from k8sproxy.cli import main

if __name__ == "__main__":
    main()
