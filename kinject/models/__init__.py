"""Hosts: the encoder with its three seams, heads, and Hugging Face folders, strictly read and written."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "config": ["EncoderConfig"],
        "encoder": ["Encoder", "EncoderOutput"],
        "heads": ["Host", "MaskedLMHead", "PlainHead", "PooledHead", "build_head"],
        "own_heads": ["JoinedHead"],
        "pretrained": ["LoadedHost", "load_host"],
        "saving": ["save_host"],
    },
)
