"""OpenEntity (Choi et al., ACL 2018), nine general types, as ERNIE and K-Adapter read it."""

from __future__ import annotations

from kinject.datasets.typed_mentions import TypedMentions


class OpenEntity(TypedMentions):
    """Records: text, one mention, `labels` (types, perhaps none), `id`."""

    DESCRIPTION = "OpenEntity: general types of a mention in its sentence, nine of them."
    HOMEPAGE = "https://www.cs.utexas.edu/~eunsol/html_pages/open_entity.html"
    CITATION = "Choi et al., Ultra-Fine Entity Typing, ACL 2018"
    LABELS = 9
    MANUAL_DOWNLOAD_INSTRUCTIONS = """\
    train.json, dev.json and test.json of the folder OpenEntity of the data of https://github.com/thunlp/ERNIE or
    https://github.com/microsoft/K-Adapter: arrays of {"sent", "start", "end" (exclusive), "labels"}, perhaps with
    "ents": [[id, start, end, score], …], which link the mention where one of them is the mention.
    """
