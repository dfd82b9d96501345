"""JSON files that hold one object: manifests, configs, results."""

from __future__ import annotations

import json
from collections.abc import Mapping
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


def write_object(path: Path, values: Mapping[str, Any]) -> None:
    """Writes an object as JSON, readable by people, whole or not at all: into a sibling first, then renamed over."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)
