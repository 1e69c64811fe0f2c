"""The program `outrider-control`: says that this version has no control plane."""

from __future__ import annotations

import sys


def main() -> int:
    """Exit code 2: there is nothing to run."""
    print(
        "outrider-control: this version has no control plane. Sidecars need none: give them a file with `agents` and\n"
        "leave `control` out (outrider-sidecar --config FILE).",
        file=sys.stderr,
    )
    return 2


if __name__ == "__main__":
    sys.exit(main())
