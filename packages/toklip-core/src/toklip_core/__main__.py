"""``python -m toklip_core``: the command ``toklip``, where that is not on the path."""

from __future__ import annotations

from toklip_core.cli import run

if __name__ == "__main__":
    run()
