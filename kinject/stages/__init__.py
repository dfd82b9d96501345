"""The stages a config can name, one file a kind: knowledge, host, plugin, evaluate."""
