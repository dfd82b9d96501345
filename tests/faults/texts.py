"""Files of texts and tables that people bring: nothing seals them, so they are held to an independent reading.

A damaged text may be another good one. What kinject reads of it must then be what Python's own json, csv and numpy read
there, or be refused; of packed files, which have checksums, only the former content will do.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import struct
from pathlib import Path

import numpy as np

CITIES = 60
PACKED = {".gz": (gzip.compress, gzip.decompress), ".bz2": (bz2.compress, bz2.decompress)}
PACKED[".xz"] = (lzma.compress, lzma.decompress)
LARGE = 12_000  # records: more than a megabyte


def write_texts(folder: Path) -> None:
    from faults.world import record_lines

    folder.mkdir()
    lines, vectors = record_lines(40), np.random.default_rng(4).normal(size=(CITIES, 6)).astype("<f4")
    names = [f"name{i}" for i in range(CITIES)]
    files = {
        "records.jsonl": lines,
        "large_records.jsonl": record_lines(LARGE),
        "records.json": json.dumps([json.loads(line) for line in lines.splitlines()]),
        "entities.csv": "id,label,aliases,vector\n"
        + "".join(f'Q{i},"city {i}, the",a{i}|b{i},{i} 1.5\n' for i in range(CITIES)),
        "entities.tsv": "id\tlabel\taliases\tvector\n"
        + "".join(f'Q{i}\tcity "{i}"\ta{i}|b{i}\t{i} 1.5\n' for i in range(CITIES)),
        "triples.tsv": "".join(f"Q{i}\tr{i % 3}\tQ{i * 7 % CITIES}\n" for i in range(CITIES)),
        "large_triples.tsv": "".join(f"Q{i}\tr{i % 3}\tQ{i * 7 % 90_001}\n" for i in range(90_000)),
        "vectors.txt": f"{CITIES} 6\n"
        + "".join(f"{name} {' '.join(map(repr, row.tolist()))}\n" for name, row in zip(names, vectors, strict=True)),
        "words.conll": "".join(f"city{i}\tB-LOC\nis\tO\nfar\tO\n\n" for i in range(CITIES)),
    }
    for name, text in files.items():
        (folder / name).write_text(text)
    for ending, (pack, _) in PACKED.items():
        (folder / f"records.jsonl{ending}").write_bytes(pack(lines.encode()))
    (folder / "large_records.jsonl.gz").write_bytes(gzip.compress(record_lines(LARGE).encode(), 1, mtime=0))
    rows = b"".join(name.encode() + b" " + row.tobytes() for name, row in zip(names, vectors, strict=True))
    (folder / "vectors.bin").write_bytes(f"{CITIES} 6\n".encode() + rows)
    np.save(folder / "large_vectors.npy", np.random.default_rng(5).normal(size=(3000, 100)).astype(np.float32))


def read(path: Path, scratch: Path):
    """What kinject reads of a file, in Python's own types."""
    from kinject.data.records import read_records
    from kinject.knowledge import KnowledgeBase
    from kinject.knowledge.importers import import_knowledge
    from kinject.knowledge.triples import read_triples
    from kinject.linking.readers import read_conll
    from kinject.text_files import open_unpacked

    kind = kind_of(path)
    if kind == "records":
        return [
            [one.text, [[m.start, m.end, m.entity] for m in one.mentions], one.fields] for one in read_records(path)
        ]
    if kind == "triples":
        ids, relations, numbers = read_triples(path)
        return [[ids[head], relations[kind], ids[tail]] for head, kind, tail in numbers.tolist()]
    if kind == "conll":
        with open_unpacked(path) as stream:
            read_ = list(read_conll(stream, str(path)))
        for one in read_:
            if isinstance(one, Exception):
                raise one
        return [[list(one.source), one.fields["tags"]] for one in read_]
    if kind == "entities":
        base = KnowledgeBase.open(import_knowledge("table", scratch / "kb", entities=path))
        words = [base.entity(row) for row in range(base.size)]
        vectors = base.gather(np.arange(base.size))[0].tolist()
        return [[one.id, one.label, list(one.aliases), row] for one, row in zip(words, vectors, strict=True)]
    if kind == "array":
        ids = scratch / "ids.txt"
        ids.write_text("".join(f"e{i}\n" for i in range(3000)))
        base = KnowledgeBase.open(import_knowledge("npy", scratch / "kb", vectors=path, ids=ids))
        return base.gather(np.arange(base.size))[0].tolist()
    base = KnowledgeBase.open(import_knowledge("word2vec", scratch / "kb", vectors=path))
    return [base.ids(range(base.size)), base.gather(np.arange(base.size))[0].tolist()]


def kind_of(path: Path) -> str:
    name = path.name.removeprefix("large_")
    kinds = {"words.conll": "conll", "vectors.npy": "array", "vectors.txt": "vectors", "vectors.bin": "binary"}
    return kinds.get(name, name.partition(".")[0])


def plainly(path: Path):
    """The same by Python's own readers, as the page on formats describes the file; raises whatever they raise."""
    content, kind = path.read_bytes(), kind_of(path)
    for magic, (_, unpack) in zip((b"\x1f\x8b", b"BZh", b"\xfd7zXZ"), PACKED.values(), strict=True):
        content = unpack(content) if content.startswith(magic) else content  # two files that changed places
    if kind == "array":
        return np.load(io.BytesIO(content)).astype(np.float32).tolist()
    if kind == "binary":
        return _binary(content)
    text = content.removeprefix(b"\xef\xbb\xbf").decode("utf-8")
    if kind == "records":
        lines = [text] if text.lstrip().startswith("[") else [line for line in text.split("\n") if line.strip()]
        values = [json.loads(line, parse_constant=float.fromhex) for line in lines]
        values = values[0] if isinstance(values[0], list) else values
        return [_record(value) for value in values]
    lines = [line.removesuffix("\r") for line in text.split("\n") if line.strip()]
    if kind == "triples":
        return [[cell.strip() for cell in line.split("\t")] for line in lines]
    if kind == "vectors":
        cells = [line.rstrip(" ").rsplit(" ", 6) for line in lines[1:]]
        return [[row[0] for row in cells], [[float(np.float32(cell)) for cell in row[1:]] for row in cells]]
    if kind == "conll":
        sentences = [one.split("\n") for one in text.split("\n\n") if one.strip()]
        rows = [[line.split("\t") for line in one if line.strip()] for one in sentences]
        return [[[row[0].strip() for row in one], [row[-1].strip() for row in one]] for one in rows]
    quoting = csv.QUOTE_NONE if path.suffix == ".tsv" else csv.QUOTE_MINIMAL
    table = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if path.suffix == ".tsv" else ",", quoting=quoting)
    header, *rows = [row for row in table if row]
    named = [dict(zip(header, row, strict=True)) for row in rows]
    return [
        [
            row["id"].strip(),
            row.get("label", "").strip(),
            [one.strip() for one in row.get("aliases", "").split("|") if one.strip()],
            [float(np.float32(one)) for one in row["vector"].split()],
        ]
        for row in named
    ]


def _record(value):
    fields = {name: one for name, one in value.items() if name not in ("text", "mentions")}
    mentions = [[one["start"], one["end"], one.get("entity")] for one in value.get("mentions", [])]
    return [value["text"], mentions, fields]


def _binary(content):
    head, _, rest = content.partition(b"\n")
    count, dim = map(int, head.split())
    ids, rows = [], []
    for _ in range(count):
        word, _, rest = rest.partition(b" ")
        rows.append(list(struct.unpack(f"<{dim}f", rest[: 4 * dim])))
        ids.append(word.lstrip(b"\n").decode())
        rest = rest[4 * dim :]
    return [ids, rows]
