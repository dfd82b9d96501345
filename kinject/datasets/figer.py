"""FIGER (Ling & Weld, AAAI 2012), 113 fine types, as ERNIE and K-Adapter read it."""

from __future__ import annotations

from kinject.datasets.typed_mentions import TypedMentions


class Figer(TypedMentions):
    """Records: text, one mention, `labels` (types, perhaps none), `id`."""

    DESCRIPTION = "FIGER: fine types of a mention in its sentence, distantly supervised training data."
    HOMEPAGE = "https://github.com/xiaoling/figer"
    CITATION = "Ling and Weld, Fine-Grained Entity Recognition, AAAI 2012"
    MANUAL_DOWNLOAD_INSTRUCTIONS = """\
    train.json, dev.json and test.json of the folder FIGER of the data of https://github.com/thunlp/ERNIE or
    https://github.com/microsoft/K-Adapter, in the form of OpenEntity. With a label2id.json beside them, a type that it
    does not have is refused; without, the types are those that occur.
    """
