"""A host ready for use: the loaded model with its tokenizer and the identity that plugins are pinned to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kinject.data.encode import EntityEncoder
from kinject.data.tokenizer import HostTokenizer, load_tokenizer
from kinject.knowledge.base import KnowledgeBase
from kinject.models.pretrained import LoadedHost, load_host
from kinject.plugins.store import NO_KNOWLEDGE, HostIdentity


@dataclass(frozen=True)
class HostBundle:
    """A loaded host with its tokenizer and its identity."""

    loaded: LoadedHost
    tokenizer: HostTokenizer

    @property
    def identity(self) -> HostIdentity:
        """What plugins are pinned to."""
        lineage = self.loaded.manifest.get("extra", {}).get("lineage", [])
        return HostIdentity(
            self.loaded.fingerprint, (self.loaded.encoder_fingerprint, *lineage), self.loaded.config.hidden_size
        )

    def encoder(self, max_length: int | None) -> EntityEncoder:
        """Encodes texts for this host, of at most so many tokens; None = as many as it has positions."""
        return EntityEncoder(self.tokenizer, max_length)


def knowledge_identity(base: KnowledgeBase | None) -> dict[str, Any]:
    """What a plugin is pinned to, and what its card says of the knowledge base; None for one that reads none."""
    if base is None:
        return dict(NO_KNOWLEDGE)
    return {
        "name": base.name,
        "fingerprint": base.fingerprint,
        "dim": base.dim,
        "count": base.size,
        "source": base.manifest["source"],
        "license": base.manifest["license"],
    }


def open_host(folder: Path | str, **options: Any) -> HostBundle:
    """Loads weights (see `load_host` for the options) and tokenizer of one folder."""
    loaded = load_host(folder, **options)
    return HostBundle(loaded, load_tokenizer(loaded.folder))
