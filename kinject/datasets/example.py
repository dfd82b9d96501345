"""The one form in which every data set here is stored: a record of `kinject.data.records` as a tf.train.Example.

Messages are built and taken apart directly, not through the feature connectors of tensorflow_datasets (250 and 126
microseconds a sentence, against 15 and 22), which matters for a corpus of 100 million sentences. The layout is
exactly theirs, so that `tfds.builder_from_directory` reads it too.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from kinject.data.records import Mention, Record

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

TEXTS = ("id", "label")
LISTS = ("labels", "answers")


def features() -> tfds.features.FeaturesDict:
    """The features that every data set here has.

    Exactly one of `text` and `tokens` holds something. `entity` is empty where a mention is not linked; `id`, `label`,
    `labels` and `answers` are empty where a record has none. `fields` is a JSON object of all else; `where` is the
    file and place that the record came from, for messages.
    """
    import numpy as np
    import tensorflow_datasets as tfds

    texts, numbers = tfds.features.Text, np.int64
    return tfds.features.FeaturesDict(
        {
            "where": texts(),
            "text": texts(),
            "tokens": tfds.features.Sequence(texts()),
            "mentions": tfds.features.Sequence({"start": numbers, "end": numbers, "entity": texts()}),
            **{name: texts() for name in TEXTS},
            **{name: tfds.features.Sequence(texts()) for name in LISTS},
            "fields": texts(),
        }
    )


def encode(record: Record, where: str) -> bytes:
    """A record -> a serialized tf.train.Example; `where` stands for the record's own."""
    from tensorflow_datasets.proto import tf_example_pb2

    example = tf_example_pb2.Example()
    feature = example.features.feature
    fields = dict(record.fields)
    for name in TEXTS:
        text = fields.pop(name) if _is_text(fields.get(name)) else ""
        feature[name].bytes_list.value.append(text.encode())
    for name in LISTS:
        values = fields.get(name)
        fits = isinstance(values, list) and bool(values) and all(map(_is_text, values))
        feature[name].bytes_list.value.extend(value.encode() for value in (fields.pop(name) if fits else ()))
    is_text = isinstance(record.source, str)
    if not is_text and not record.source:
        fields["tokens"] = []  # else it would come back as an empty text
    feature["text"].bytes_list.value.append(record.source.encode() if is_text else b"")
    feature["tokens"].bytes_list.value.extend(() if is_text else (token.encode() for token in record.source))
    feature["mentions/start"].int64_list.value.extend(mention.start for mention in record.mentions)
    feature["mentions/end"].int64_list.value.extend(mention.end for mention in record.mentions)
    feature["mentions/entity"].bytes_list.value.extend((each.entity or "").encode() for each in record.mentions)
    feature["fields"].bytes_list.value.append(json.dumps(fields).encode() if fields else b"")
    feature["where"].bytes_list.value.append(where.encode("utf-8", "replace"))
    return example.SerializeToString()


def decode(raw: bytes) -> Record:
    """A serialized tf.train.Example -> the record that was encoded.

    Nothing is checked again: what was written had been checked.
    """
    from tensorflow_datasets.proto import tf_example_pb2

    feature = tf_example_pb2.Example.FromString(raw).features.feature

    def text(name: str) -> str:
        return feature[name].bytes_list.value[0].decode()

    def texts(name: str) -> list[str]:
        return [value.decode() for value in feature[name].bytes_list.value]

    fields = json.loads(text("fields") or "{}")
    tokens = texts("tokens") or fields.pop("tokens", None)
    fields.update((name, value) for name in TEXTS if (value := text(name)))
    fields.update((name, values) for name in LISTS if (values := texts(name)))
    starts, ends = feature["mentions/start"].int64_list.value, feature["mentions/end"].int64_list.value
    mentions = tuple(
        Mention(start, end, entity or None)
        for start, end, entity in zip(starts, ends, texts("mentions/entity"), strict=True)
    )
    return Record(text("text") if tokens is None else tuple(tokens), mentions, fields, text("where"))


def _is_text(value: object) -> bool:
    """Whether a value can be stored as a text that is told from none."""
    if not isinstance(value, str) or not value:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair survives in JSON only
        return False
    return True
