"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path


def write_atomically(path: Path, data: bytes) -> None:
    """Write so that a crash leaves either the old file or the new one."""
    write_together({path: data})


def write_together(files: Mapping[Path, bytes]) -> None:
    """Write all files aside before any is replaced, so that a full disk leaves all the old ones."""
    temporaries = {path: path.with_name(f".{path.name}.{os.getpid()}") for path in files}
    try:
        for path, temporary in temporaries.items():
            with open(temporary, "wb") as file:
                file.write(files[path])
                file.flush()
                os.fsync(file.fileno())
        for path, temporary in temporaries.items():
            os.replace(temporary, path)
    finally:
        for temporary in temporaries.values():
            temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove files aside of processes that were killed while they wrote."""
    for path in folder.glob(".*.*"):
        number = path.suffix.removeprefix(".")
        if number.isdigit() and os.name == "posix" and not _runs(int(number)):
            path.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)  # asks, and sends nothing
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
