"""Corpora of one's own: JSON lines with entity spans, labelled texts, tagged words, dependency trees."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from kinject.data.records import Record, parse_record, read_records
from kinject.datasets.builder import RecordBuilder, SplitFiles, Splits
from kinject.datasets.files import check, take, texts
from kinject.errors import InputError, first_line
from kinject.text_files import as_bio as from_bioes
from kinject.text_files import read_lines, split_columns

UNNAMED = tfds.core.BuilderConfig(name="corpus", description="a corpus without a name of its own")
JSONL_ENDINGS = (".jsonl", ".jsonl.gz")
COLUMN_ENDINGS = (".txt", ".txt.gz", ".conll", ".conll.gz")
CONLLU_ENDINGS = (".conllu", ".conllu.gz")
DOCUMENT = "-DOCSTART-"
_BLANK = "\x1f"  # stands for a blank within a column of CoNLL-U
CONLLU_FORM = "CoNLL-U has ten columns between tabs, ID to MISC, and a blank line after each sentence"


class Jsonl(RecordBuilder):
    """JSON lines with entity spans, in the records' own form, of any size.

    Records: as they are, with all their fields. An `id` is optional; no two records may have the same one.

    The config's name is the corpus's: `jsonl/mine` on the command line.
    """

    DESCRIPTION = "A corpus of one's own: texts or token lists with entity mentions."
    MANUAL_DOWNLOAD_INSTRUCTIONS = """\
    One file a split, named after it: train.jsonl, test.jsonl.gz, … A line is
    {"text": "Paris is big.", "mentions": [{"start": 0, "end": 5, "entity": "Q90"}]}, or has "tokens": ["Paris", …] and
    offsets in tokens; any further fields (id, label, labels, answers, …) are kept.
    """
    HAS_OWN_IDS = True
    USER_NAMED = True
    BUILDER_CONFIGS: ClassVar[list[tfds.core.BuilderConfig]] = [UNNAMED]

    def files(self, folder: Path) -> list[Path]:
        return _files_ending(folder, JSONL_ENDINGS, "put train.jsonl there; one file a split")

    def splits(self, folder: Path) -> Splits:
        files: dict[str, Path] = {}
        for path in self.files(folder):
            split = path.name.partition(".")[0]
            if (
                not re.fullmatch(r"[A-Za-z0-9_]+", split)
                or split == "all"
                or path.name.removeprefix(split) not in JSONL_ENDINGS
            ):
                raise InputError(path, f"{split!r} cannot be a split's name", "rename it: letters, digits and _")
            if split in files:
                raise InputError(path, f"split {split} is in {files[split].name} already", "keep one of them")
            files[split] = path
        return {split: partial(_own_records, path) for split, path in files.items()}


def _files_ending(folder: Path, endings: tuple[str, ...], hint: str) -> list[Path]:
    found = sorted(path for path in folder.iterdir() if path.name.endswith(endings))
    if not found:
        raise InputError(folder, f"no file ends in {' or '.join(endings)}", hint)
    return found


def _own_records(path: Path) -> Iterator[Record]:
    for record in read_records(path):
        if "id" in record.fields and not check(record.fields["id"], str, "id", record.where):
            raise InputError(record.where, "field 'id' is empty", "leave it out where there is none")
        yield record


class TextClassification(SplitFiles):
    """Texts, or pairs of texts, with one label each: JSON lines, as PlugLM's domain data sets have them.

    Records: text, `pair` where a line has it, `label`, `id`; mentions where a line has them.
    """

    DESCRIPTION = "Texts with labels, a corpus of one's own choice: ChemProt, RCT, ACL-ARC, SciERC, AGNews, IMDB, …"
    HOMEPAGE = "https://github.com/allenai/dont-stop-pretraining"
    CITATION = "Gururangan et al., Don't Stop Pretraining, ACL 2020"
    USER_NAMED = True
    BUILDER_CONFIGS: ClassVar[list[tfds.core.BuilderConfig]] = [UNNAMED]
    MANUAL_DOWNLOAD_INSTRUCTIONS = """\
    train.jsonl, dev.jsonl and test.jsonl: a line has text, label (a string or a whole number), for pairs also pair (the
    second text), and perhaps mentions. dev and test may be missing. With a label2id.json beside them, other labels are
    refused, and theirs is the order of labels; without, it is that of their names.
    """

    def record(self, line: dict[str, Any], where: str, identity: str) -> Record:
        label = str(check(take(line, "label", str | int, where), str | int, "label", where))
        if not label:
            raise InputError(where, "field 'label' is empty", "drop the line")
        self.known([("label", label)], where)
        pair = {"pair": take(line, "pair", str, where)} if "pair" in line else {}
        fields = {**pair, "mentions": line.get("mentions", []), "label": label, "id": identity}
        return parse_record({"text": take(line, "text", str, where), **fields}, where)


class Ner(SplitFiles):
    """Words with BIO tags: CoNLL's columns or JSON lines.

    Records: tokens, `tags` (BIO, one a token), `id`; mentions where JSON lines have them.

    Files in which a name begins with `I-` have the older scheme (IOB1), in which `B-` stands only between two names of
    one type; their tags are turned into BIO.
    """

    DESCRIPTION = "Named entities: words with BIO tags, a corpus of one's own choice."
    HOMEPAGE = "https://www.clips.uantwerpen.be/conll2003/ner/"
    CITATION = "Tjong Kim Sang and De Meulder, Introduction to the CoNLL-2003 Shared Task, CoNLL 2003"
    USER_NAMED = True
    BUILDER_CONFIGS: ClassVar[list[tfds.core.BuilderConfig]] = [UNNAMED]
    SPLITS: ClassVar[dict[str, tuple[str, ...]]] = {
        "train": ("train.txt", "train.conll", "train.jsonl", "eng.train.txt"),
        "validation": ("dev.txt", "valid.txt", "dev.conll", "dev.jsonl", "valid.jsonl", "eng.testa.txt"),
        "test": ("test.txt", "test.conll", "test.jsonl", "eng.testb.txt"),
    }
    MANUAL_DOWNLOAD_INSTRUCTIONS = """\
    train, dev (or valid) and test, each .txt or .conll: a word a line, columns between spaces or tabs, the word first
    and its tag last, a blank line after each sentence, lines of -DOCSTART- skipped; or .jsonl: {"tokens": […],
    "tags": […]}, perhaps with "mentions". dev and test may be missing. With a label2id.json beside them, other tags are
    refused.
    """

    def objects(self, path: Path) -> Iterator[tuple[int, str, dict[str, Any]]]:
        """One object a sentence."""
        return _tagged_sentences(path) if path.name.endswith(COLUMN_ENDINGS) else super().objects(path)

    def record(self, line: dict[str, Any], where: str, identity: str) -> Record:
        tokens = texts(take(line, "tokens", list, where), "tokens", where)
        tags = as_bio(texts(take(line, "tags", list, where), "tags", where), where)
        if len(tags) != len(tokens) or not tokens:
            problem = f"field 'tags' has {len(tags)} of them for {len(tokens)} tokens"
            raise InputError(where, problem, "there must be one a token, and a token")
        self.known(((f"tags[{i}]", tag) for i, tag in enumerate(tags)), where)
        mentions = line.get("mentions", [])
        return parse_record({"tokens": tokens, "mentions": mentions, "tags": tags, "id": identity}, where)


def as_bio(tags: list[str], where: str) -> list[str]:
    """Tags in which every name begins with `B-`, of BIO, IOB1, BIOES or BILOU.

    Raises:
      InputError: a tag that is neither `O` nor `B-` or `I-` (`S-`, `E-`, `U-`, `L-`) and a type.
    """
    found: list[str] = []
    tags = from_bioes(tags)
    for i, tag in enumerate(tags):
        if tag != "O" and (tag[:2] not in ("B-", "I-") or not tag[2:]):
            raise InputError(where, f"field 'tags[{i}]' is {tag!r}", "a tag is O, or B- or I- and a type")
        inside = i > 0 and found[-1] != "O" and found[-1][2:] == tag[2:]
        found.append(f"B-{tag[2:]}" if tag.startswith("I-") and not inside else tag)
    return found


def _tagged_sentences(path: Path) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """(number of its first line, "file:line", tokens and tags) of each sentence of a file of columns."""
    words: list[list[str]] = []
    start, empty = 0, True
    for number, line in read_lines(path):
        columns = split_columns(line)
        if columns and columns[0] == DOCUMENT:
            continue
        if not columns:
            if words:
                yield start, f"{path}:{start}", _columns(words)
            words = []
            continue
        if len(columns) < 2:
            raise InputError(f"{path}:{number}", f"the line is {line!r}", "it must be a word, a space and its tag")
        start = start if words else number
        words.append(columns)
        empty = False
    if words:
        yield start, f"{path}:{start}", _columns(words)
    if empty:
        raise InputError(path, "the file is empty: there is no sentence in it", "download it again")


def _columns(words: list[list[str]]) -> dict[str, Any]:
    return {"tokens": [columns[0] for columns in words], "tags": [columns[-1] for columns in words]}


class Treebank(RecordBuilder):
    """Any treebank's or parser's trees in CoNLL-U, read by the `conllu` library: for the linguistic K-Adapter.

    Records: tokens (syntactic words), `heads` (from 1, 0 = root), `relations` (their names), `id` (split/line).

    The words are those that have heads: of a contraction its parts, such as `de` and `le` of `du`. Empty nodes are left
    out. A sentence is refused where its words are not numbered from 1 on or a head is none of them.
    """

    DESCRIPTION = "Dependency trees in CoNLL-U: a treebank of one's own choice, or what a parser wrote."
    HOMEPAGE = "https://universaldependencies.org/format.html"
    MANUAL_DOWNLOAD_INSTRUCTIONS = """\
    One file a split, whose name ends in it: en_ewt-ud-train.conllu, dev.conllu, x-test.conllu.gz, … (Universal
    Dependencies' own names are such). dev is called validation afterwards.
    """

    def files(self, folder: Path) -> list[Path]:
        return _files_ending(folder, CONLLU_ENDINGS, "put train.conllu there")

    def splits(self, folder: Path) -> Splits:
        files: dict[str, Path] = {}
        for path in self.files(folder):
            split = re.split(r"[-.]", path.name.removesuffix(".gz").removesuffix(".conllu"))[-1]
            split = {"dev": "validation"}.get(split, split)
            if not re.fullmatch(r"[A-Za-z0-9_]+", split) or split == "all":
                raise InputError(path, f"{split!r} cannot be a split's name", "rename it: …-train.conllu")
            if split in files:
                raise InputError(path, f"split {split} is in {files[split].name} already", "keep one of them")
            files[split] = path
        return {split: partial(_trees, split, path) for split, path in files.items()}


def _trees(split: str, path: Path) -> Iterator[Record]:
    for number, text in _sentences(path):
        where = f"{path}:{number}"
        words = [token for token in _parse(text, where) if isinstance(token["id"], int)]
        heads = _heads(words, where)
        record = {
            "tokens": [word["form"].replace(_BLANK, " ") for word in words],
            "heads": heads,
            "relations": [str(word.get("deprel") or "_") for word in words],
            "id": f"{split}/{number}",
        }
        yield parse_record(record, where)


def _sentences(path: Path) -> Iterator[tuple[int, str]]:
    """(number of its first line, lines) of each sentence."""
    lines: list[str] = []
    start = 1
    for number, line in read_lines(path):
        if line.strip():
            start = start if lines else number
            lines.append(line.rstrip("\r\n"))
        elif lines:
            yield start, "\n".join(lines)
            lines = []
    if lines:
        yield start, "\n".join(lines)


def _parse(text: str, where: str) -> list[Any]:
    import conllu

    lines = (one.replace(" ", _BLANK) if "\t" in one else one for one in text.split("\n"))
    try:  # the library divides columns at two blanks too, and a word may hold them
        sentences = conllu.parse("\n".join(lines) + "\n\n")
    except Exception as error:  # whatever the library makes of a malformed line
        raise InputError(where, f"a sentence that is not CoNLL-U ({first_line(error, 80)})", CONLLU_FORM) from None
    return sentences[0] if sentences else []


def _heads(words: list[Any], where: str) -> list[int]:
    """The heads of a sentence's words; raises InputError where they are no tree's."""
    if not words:
        raise InputError(where, "a sentence without words", CONLLU_FORM)
    heads = []
    for place, word in enumerate(words, start=1):
        if word["id"] != place:
            raise InputError(where, f"word {word['id']} stands where {place} is due", "number the words from 1 on")
        head = word.get("head")
        if type(head) is not int or not 0 <= head <= len(words) or head == place:
            hint = f"a head is another word of the sentence, 1 to {len(words)}, or 0"
            raise InputError(where, f"field HEAD of word {place} is {head!r}", hint)
        heads.append(head)
    return heads
