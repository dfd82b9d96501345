"""JSON files that hold one object: manifests, configs, results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kinject.errors import InputError, first_line


def read_object(path: Path, hint: str = "") -> dict[str, Any]:
    """Reads the one object of a JSON file.

    Args:
      path: the file, UTF-8.
      hint: what a person can do where it cannot be read.

    Raises:
      InputError: no such file, no JSON, or no object.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(path, f"it cannot be read: {error.strerror or error}", hint) from None
    except (ValueError, RecursionError) as error:
        raise InputError(path, f"it is not JSON: {first_line(error)}", hint) from None
    if not isinstance(found, dict):
        raise InputError(path, "it is not a JSON object", hint)
    return found
