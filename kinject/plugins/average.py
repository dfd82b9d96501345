"""A weighted mean of plugins of one shape: what their maps have in common, as one plugin.

Wortsman et al. (2022) call that a model soup, of models that start alike, as plugins of one method from one closed form
do. Plugins of different vector spaces or hosts have no common coordinates, and are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax
from flax import nnx

from kinject.errors import InputError
from kinject.plugins.store import StoredPlugin, load_plugin, save_again


def average_plugins(plugins: Sequence[StoredPlugin], weights: Sequence[float] | None, folder: Path) -> StoredPlugin:
    """Writes and returns the plugin whose parameters are the weighted mean of those of others.

    Args:
      plugins: two or more, of one method with one configuration, made for one host and one knowledge base.
      weights: one each, 0 or more, divided by their sum; None = all alike.
      folder: where it is written; must not exist.

    Raises:
      InputError: plugins that have no common coordinates, or that brought heads along; weights that are no weights.
    """
    if len(plugins) < 2:
        raise InputError("plugins", f"there is {len(plugins)}", "give two or more")
    shares = _shares(weights, len(plugins))
    first, *others = (one.manifest for one in plugins)
    for one, manifest in zip(plugins[1:], others, strict=True):
        for name, mine, theirs in _compared(first, manifest):
            if mine != theirs:
                problem = f"its {name} is {theirs}, that of {plugins[0].folder.name} is {mine}"
                raise InputError(one.folder, problem, "average plugins of one host, one knowledge base and one shape")
    for one in plugins:
        if one.manifest.get("head") is not None:
            raise InputError(one.folder, "it brought a head along, which has no mean", "average plugins without heads")
    leaves = [nnx.state(one.plugin, nnx.Param) for one in plugins]
    mean = jax.tree.map(lambda *all_of: sum(share * leaf for share, leaf in zip(shares, all_of, strict=True)), *leaves)
    made = nnx.merge(*nnx.split(plugins[0].plugin))
    nnx.update(made, mean)
    parts = [
        {"plugin": one.folder.name, "weight": share, "files": one.manifest["files"]}
        for one, share in zip(plugins, shares, strict=True)
    ]
    save_again(StoredPlugin(made, first, plugins[0].folder), folder, config={"average_of": parts}, metrics={})
    return load_plugin(folder)


def _compared(one: dict, other: dict) -> list[tuple[str, object, object]]:
    """What must be the same of two plugins, with its name."""
    facts = [("method", "method"), ("settings", "method_config"), ("parameters", "parameters")]
    found = [(name, one[key], other[key]) for name, key in facts]
    for name, key, field in (("host", "host", "encoder_fingerprint"), ("knowledge base", "knowledge", "fingerprint")):
        found.append((name, one[key].get(field), other[key].get(field)))
    return found


def _shares(weights: Sequence[float] | None, count: int) -> list[float]:
    shares = [1.0] * count if weights is None else [float(one) for one in weights]
    if len(shares) != count:
        raise InputError("weights", f"there are {len(shares)} for {count} plugins", "give one each")
    if min(shares) < 0 or not 0 < sum(shares) < float("inf"):
        raise InputError("weights", f"they are {shares}", "give numbers from 0, not all 0")
    return [one / sum(shares) for one in shares]
