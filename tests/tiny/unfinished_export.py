"""Program: `iformer ARGUMENTS`, with a conversion to ONNX that writes half a file, creates READY and sleeps.

python -m tiny.unfinished_export READY ARGUMENTS
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from iformer.cli.main import main
from iformer.deploy.runtimes import onnx


def write(spec: object, path: Path) -> None:
    """Begin a conversion that is not finished within a minute."""
    path.write_text("half")
    Path(sys.argv[1]).touch()
    time.sleep(600)


if __name__ == "__main__":
    module: Any = onnx
    module.write = write
    sys.exit(main(sys.argv[2:]))
