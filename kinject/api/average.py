"""`kinject.average`: several plugins of one shape as one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from kinject.plugins.average import average_plugins
from kinject.serving import Plugin


def average(
    plugins: Sequence[Plugin | str | os.PathLike[str]],
    weights: Sequence[float] | None = None,
    *,
    name: str | None = None,
) -> Plugin:
    """The weighted mean of plugins of one host, one knowledge base and one shape, as a plugin.

    Args:
      plugins: two or more, loaded or their folders.
      weights: one each, 0 or more, divided by their sum; None = all alike.
      name: what it is called; None = as the first.

    Returns:
      A plugin that is in no folder of yours yet: `save` it.

    Raises:
      InputError: plugins that do not go together, or weights that are no weights.
    """
    loaded = [one if isinstance(one, Plugin) else Plugin.load(one) for one in plugins]
    keeps = tempfile.TemporaryDirectory(prefix="kinject-")
    made = average_plugins([one.stored for one in loaded], weights, Path(keeps.name) / "plugin")
    knowledge = next((one.knowledge for one in loaded if one.knowledge is not None), None)
    return Plugin(made, name=name or loaded[0].name, knowledge=knowledge, keeps=keeps)
