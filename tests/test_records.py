import gzip
import itertools
import json
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinject.data.records import Mention, parse_record, read_records
from kinject.errors import InputError

steady = settings(derandomize=True, max_examples=100, deadline=None)

strings = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | strings,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(strings, inner, max_size=4),
    max_leaves=8,
)


@st.composite
def lines(draw):
    """A good line as a dict."""
    source = draw(strings | st.lists(strings, max_size=8))
    ends = sorted(draw(st.sets(st.integers(0, len(source)), max_size=6)))
    mentions = [
        {"start": start, "end": end, "entity": draw(st.none() | strings)}
        for start, end in zip(ends[::2], ends[1::2], strict=False)
    ]
    line = draw(st.dictionaries(strings.filter(lambda name: name not in ("text", "tokens", "mentions")), json_values))
    line["text" if isinstance(source, str) else "tokens"] = source
    if mentions or draw(st.booleans()):
        line["mentions"] = draw(st.permutations(mentions))
    return line


@steady
@given(
    given_lines=st.lists(lines(), min_size=1, max_size=5), packed=st.booleans(), ascii_=st.booleans(), bom=st.booleans()
)
def test_what_is_written_is_read(tmp_path_factory, given_lines, packed, ascii_, bom):
    file = tmp_path_factory.mktemp("records") / ("a.jsonl.gz" if packed else "a.jsonl")
    content = "\r\n \n".join(json.dumps(line, ensure_ascii=ascii_) for line in given_lines).encode()
    content = b"\xef\xbb\xbf" * bom + content
    file.write_bytes(gzip.compress(content) if packed else content)
    for number, (record, line) in enumerate(zip(read_records(file), given_lines, strict=True)):
        source = line.get("text", line.get("tokens"))
        assert record.source == (source if isinstance(source, str) else tuple(source))
        assert record.text == (source if isinstance(source, str) else " ".join(source))
        assert record.mentions == tuple(Mention(**mention) for mention in line.get("mentions", []))
        assert record.fields == {k: v for k, v in line.items() if k not in ("text", "tokens", "mentions")}
        assert record.where == f"{file}:{2 * number + 1}"


@steady
@given(st.lists(st.binary(max_size=30) | lines().map(lambda line: json.dumps(line)[:-1].encode()), max_size=3))
def test_any_bytes_are_read_or_refused_in_one_line(tmp_path_factory, junk):
    file = tmp_path_factory.mktemp("junk") / "a.jsonl"
    file.write_bytes(b"\n".join([b'{"text": "good"}', *junk]))
    records = read_records(file)
    assert next(records).source == "good"
    try:
        list(records)
    except InputError as error:
        assert str(error).startswith(f"{file}:")
        assert "\n" not in str(error)


@steady
@given(value=json_values | st.fixed_dictionaries({"text": json_values, "mentions": json_values}))
def test_any_json_value_is_a_record_or_refused(value):
    try:
        record = parse_record(value, "here:3")
    except InputError as error:
        assert str(error).startswith("here:3: ")
    else:
        assert isinstance(record.source, (str, tuple))
        ordered = sorted(record.mentions, key=lambda mention: mention.start)
        ends = [0, *(end for mention in ordered for end in (mention.start, mention.end)), len(record.source)]
        assert ends == sorted(ends)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a"', "not JSON: .* column 13"),
        ("[1, 2]", "expected a JSON object, got list"),
        ('{"label": 1}', "neither 'text' nor 'tokens'"),
        ('{"text": "a", "tokens": ["a"]}', "both 'text' and 'tokens'"),
        ('{"text": 3}', "field 'text' is int 3"),
        ('{"tokens": "a b"}', "field 'tokens' is str 'a b'"),
        ('{"tokens": ["a", null]}', r"field 'tokens\[1\]' is NoneType None"),
        ('{"text": "abc", "mentions": {}}', "field 'mentions' is dict"),
        ('{"text": "abc", "mentions": ["Q1"]}', r"field 'mentions\[0\]' is str"),
        ('{"text": "abc", "mentions": [{"start": 0}]}', r"field 'mentions\[0\].end' is missing"),
        ('{"text": "abc", "mentions": [{"start": 0, "end": true}]}', r"'mentions\[0\].end' is bool True"),
        ('{"text": "abc", "mentions": [{"start": 0, "end": 1.0}]}', r"'mentions\[0\].end' is float 1.0"),
        ('{"text": "abc", "mentions": [{"start": 0, "end": 1, "entity": 5}]}', r"'mentions\[0\].entity' is int 5"),
        ('{"text": "abc", "mentions": [{"start": 0, "end": 4}]}', "end 4 in a text of 3 characters"),
        ('{"tokens": ["abc"], "mentions": [{"start": 0, "end": 2}]}', "end 2 in a text of 1 tokens"),
        ('{"text": "abc", "mentions": [{"start": 2, "end": 2}]}', "start 2, end 2"),
        ('{"text": "abc", "mentions": [{"start": -1, "end": 2}]}', "start -1"),
        (
            '{"text": "abc", "mentions": [{"start": 1, "end": 3}, {"start": 0, "end": 2}]}',
            r"mentions\[1\] and mentions\[0\] overlap",
        ),
        (r'{"text": "a\ud800"}', "field 'text' has half of a surrogate pair at character 1"),
        ('{"text": "abc", "other": 1}', "field 'label' is missing; .* text, other"),
        ("[" * 100_000, "not readable JSON"),
        ('{"text": ' + "1" * 5_000 + "}", "not readable JSON"),
    ],
)
def test_a_bad_line_is_named(line, message, tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "fine", "label": 1}\n\n' + line + "\n")
    with pytest.raises(InputError, match=message) as caught:
        list(read_records(file, require=("label",)))
    assert str(caught.value).startswith(f"{file}:3: ")
    assert len(str(caught.value)) < 400


def test_wrong_encodings(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_bytes('{"text": "é"}'.encode("latin-1"))
    with pytest.raises(InputError, match=r"a.jsonl:1: byte 11 .* not UTF-8"):
        list(read_records(file))
    file.write_bytes('{"text": "é"}'.encode("utf-16"))
    with pytest.raises(InputError, match=r"a.jsonl: it is UTF-16, .*iconv"):
        list(read_records(file))


def test_bad_files(tmp_path):
    for paths, message in [
        (tmp_path / "absent.jsonl", "absent.jsonl: no such file"),
        (tmp_path, "is a folder"),
        ([], "no file was given"),
    ]:
        with pytest.raises(InputError, match=message):
            read_records(paths)
    empty = tmp_path / "empty.jsonl"
    empty.write_text(" \n\n")
    with pytest.raises(InputError, match=r"empty.jsonl: there is no record"):
        list(read_records(empty))
    packed = gzip.compress(b'{"text": "a"}\n' * 50_000)
    for name, content in [("cut", packed[:-20]), ("plain", b'{"text": "a"}'), ("flipped", packed[:60] + b"\0" * 60)]:
        file = tmp_path / f"{name}.jsonl.gz"
        file.write_bytes(content)
        with pytest.raises(InputError, match=rf"{name}.jsonl.gz:\d+: corrupt gzip data"):
            list(read_records(file))


def test_several_files_are_one_data_set(tmp_path):
    for name, texts in [("b", "xy"), ("a", ""), ("c", "z")]:
        (tmp_path / name).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    records = list(read_records([tmp_path / "b", str(tmp_path / "a"), tmp_path / "c"]))
    assert [record.source for record in records] == ["x", "y", "z"]
    assert [record.where for record in records] == [f"{tmp_path}/b:1", f"{tmp_path}/b:2", f"{tmp_path}/c:1"]


def test_memory_does_not_grow_with_the_file(tmp_path):
    file = tmp_path / "large.jsonl.gz"
    line = json.dumps({"text": "rain " * 40}).encode() + b"\n"
    with gzip.open(file, "wb", compresslevel=1) as stream:
        for _ in range(200):
            stream.write(line * 500)
    records = read_records(file)
    next(records)
    tracemalloc.start()
    try:
        count = sum(1 for _ in itertools.islice(records, 20_000))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 20_000
    assert peak < 2_000_000  # the lines read are 4 MB
