"""The keeper as a program: run as a file, isolated (`python -I -S`), outside any environment."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    # At the end: nothing that lies beside the package may stand in for the standard library.
    sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    from registry.keeper.process import main

    sys.exit(main(sys.argv[1:]))
