"""Raw text -> mentions of entities.

A linker is any callable `(text: str) -> Iterable[Span | tuple[int, int, str]]`: characters [start, end) of the text and
the entity's id, in any order, none overlapping another. Two lines make one:

    def linker(text):
        return [(match.start(), match.end(), ids[match[0]]) for match in my_pattern.finditer(text)]

`AliasLinker` is the one that comes along: it finds a knowledge base's own names.
"""

from kinject.linking.linker import AliasLinker, Linker, NamesLinker, Span

__all__ = ["AliasLinker", "Linker", "NamesLinker", "Span"]
