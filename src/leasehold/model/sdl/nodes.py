"""Reading YAML with positions, within bounds, collecting every mistake.

The document is composed (not constructed): scalars stay text with a line and a column, and each
field is read as what it should be. Fields therefore mean what they mean to Go's decoder, which
goes by the type of the field and not by YAML 1.1's guesses (``proto: 80`` is text, ``1_000`` is
not a number).

A hostile document is cheap to refuse: size first, then nesting (the composer is recursive C and
would overflow the stack), and the number of nodes *visited* is bounded, so aliases cannot multiply.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator, Mapping

import yaml
from yaml._yaml import CParser

from leasehold.core.errors import Kind, LeaseholdError, Violation

MAX_SDL_BYTES = 512 * 1024
"""Largest SDL accepted, in bytes of UTF-8."""

MAX_DEPTH = 64
"""Deepest nesting of collections; a real SDL has 9 levels."""

MAX_VISITS = 100_000
"""Most nodes read from one document, counting an aliased node each time it is reached."""

MAX_VIOLATIONS = 200
"""Mistakes listed; a document with more is cut off there."""

_DEEP_BLOCK = re.compile(r"^[ \t\-?:]{128}", re.MULTILINE)
_NULLS = frozenset(("", "~", "null", "Null", "NULL"))
_TRUE = frozenset(("true", "True", "TRUE", "yes", "Yes", "YES", "on", "On", "ON", "y", "Y"))
_FALSE = frozenset(("false", "False", "FALSE", "no", "No", "NO", "off", "Off", "OFF", "n", "N"))
_INTEGER = re.compile(r"^([+-]?(?:0|[1-9][0-9]{0,18}))(?:\.0*)?\Z")
"""Without leading zeros: others would read those as octal. ``1.0`` is whole, too."""
_HINTS = {
    "cannot start any token": "a tab, '@', '`' or '%' begins no value: indent with spaces, or "
    "quote the text",
    "violates indentation": "indent with spaces",
    "mapping values are not allowed": "look for a wrong indent, a colon without a space after it, "
    "or a ': ' in text without quotes, here or in the line before",
    "scanning an alias": "'*' begins an alias: quote the text",
    "did not find expected key": "look for a wrong indent, or a quote that is never closed",
    "did not find expected '-'": "the entries of a list begin in one column, each with '- '",
    "could not find expected ':'": "look for a wrong indent, or a key without a colon",
    "undefined alias": "'*' begins an alias: quote the text, or name an anchor of this file",
    "unexpected end of stream": "a quote is never closed",
}
"""What the parser complains of, and what people had done."""


class _Composer(CParser):
    """The C parser without tag resolution: every field knows what it wants."""

    def __init__(self, text: str) -> None:
        CParser.__init__(self, text)

    def resolve(self, kind: type, value: str | None, implicit: object) -> str:
        return ""

    def descend_resolver(self, parent: object, index: object) -> None: ...

    def ascend_resolver(self) -> None: ...

    def dispose(self) -> None: ...


def compose(text: str) -> yaml.Node | None:
    """The root node of the first document; LeaseholdError says where it is broken."""
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > MAX_SDL_BYTES:
        raise LeaseholdError(
            "sdl_too_large",
            f"the SDL has {size} bytes; at most {MAX_SDL_BYTES} are accepted",
            kind=Kind.TOO_LARGE,
            expected=f"≤ {MAX_SDL_BYTES}",
            got=size,
        )
    try:
        if text.count("[") + text.count("{") > MAX_DEPTH or _DEEP_BLOCK.search(text):
            _check_depth(text)
        composer = _Composer(text)
        if not composer.check_node():
            return None
        return composer.get_node()
    except yaml.YAMLError as error:
        raise _syntax(error) from None
    except (UnicodeEncodeError, ValueError) as error:
        raise LeaseholdError.of(
            [Violation("yaml_syntax", f"the file is not readable YAML: {error}")]
        ) from None


def _check_depth(text: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=yaml.CSafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                mark = event.start_mark
                assert mark is not None
                raise LeaseholdError.of(
                    [
                        Violation(
                            "yaml_too_deep",
                            f"nested deeper than {MAX_DEPTH} levels",
                            line=mark.line + 1,
                            column=mark.column + 1,
                            expected=f"≤ {MAX_DEPTH}",
                        )
                    ]
                )
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _syntax(error: yaml.YAMLError) -> LeaseholdError:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    context = getattr(error, "context", None)
    begun = getattr(error, "context_mark", None)
    if context and begun:
        context += f" that begins in line {begun.line + 1}"
    whole = problem + (f" {context}" if context else "")
    hint = next((f"; {said}" for sign, said in _HINTS.items() if sign in whole), "")
    return LeaseholdError.of(
        [
            Violation(
                "yaml_syntax",
                f"the file is not YAML: {whole}{hint}",
                line=mark.line + 1 if mark else None,
                column=mark.column + 1 if mark else None,
                expected="YAML",
            )
        ]
    )


class Document:
    """Where reading one file keeps its mistakes and its budget."""

    def __init__(self) -> None:
        self.violations: list[Violation] = []
        self.settled: set[yaml.Node] = set()
        """Places of which enough is said: what else is wrong there follows from it."""
        self.visits = 0

    def visit(self) -> None:
        self.visits += 1
        if self.visits > MAX_VISITS:
            raise LeaseholdError(
                "sdl_too_complex",
                f"the SDL expands to more than {MAX_VISITS} values (do its aliases multiply?)",
                kind=Kind.TOO_LARGE,
                expected=f"≤ {MAX_VISITS}",
            )

    def add(self, violation: Violation) -> None:
        if len(self.violations) < MAX_VIOLATIONS:
            self.violations.append(violation)


class At:
    """One place of the document: a node, the path that leads to it, and the key it is under."""

    __slots__ = ("document", "key", "node", "path")

    def __init__(
        self, document: Document, node: yaml.Node, path: str, key: yaml.Node | None = None
    ) -> None:
        self.document = document
        self.node = node
        self.path = path
        self.key = key

    @property
    def name(self) -> At:
        """Where the key stands."""
        return At(self.document, self.key or self.node, self.path)

    def fail(self, code: str, message: str, expected: object = None, got: object = None) -> None:
        """Note a mistake here; reading goes on. Of a scalar only the first is noted."""
        if self.node in self.document.settled:
            return
        if isinstance(self.node, yaml.ScalarNode):
            self.document.settled.add(self.node)
        mark = self.node.start_mark
        self.document.add(
            Violation(
                code,
                message,
                self.path,
                None if expected is None else str(expected),
                None if got is None else str(got)[:200],
                mark.line + 1,
                mark.column + 1,
            )
        )

    @property
    def is_null(self) -> bool:
        node = self.node
        return isinstance(node, yaml.ScalarNode) and not node.style and node.value in _NULLS

    @property
    def is_mapping(self) -> bool:
        return isinstance(self.node, yaml.MappingNode)

    @property
    def is_sequence(self) -> bool:
        return isinstance(self.node, yaml.SequenceNode)

    @property
    def said(self) -> bool:
        """Something is wrong here already, or below."""
        below = (f"{self.path}.", f"{self.path}[")
        return any(
            noted.path == self.path or noted.path.startswith(below)
            for noted in self.document.violations
        )

    def child(self, name: str) -> yaml.Node | None:
        """What stands under ``name``, unread; None when nothing does."""
        pairs = self.node.value if self.is_mapping else ()
        return next((value for key, value in pairs if key.value == name), None)

    def wrong(self, expected: str, hint: str = "") -> None:
        """Note that what is here is of another kind; nothing else is said of it."""
        if self.is_mapping:
            got = "a mapping"
        elif self.is_sequence:
            got = "a list"
        else:
            got = "nothing" if self.is_null else repr(str(self.node.value)[:80])
        tail = f"; {hint}" if hint else ""
        self.fail("type", f"expected {expected}, got {got}{tail}", expected, got)
        self.document.settled.add(self.node)

    def members(
        self,
        known: Collection[str] | None = None,
        hints: Mapping[str, str] | None = None,
        hint: str = "",
    ) -> dict[str, At]:
        """The members of a mapping; unknown and repeated keys are noted. Null is empty.

        ``hints`` say of keys that belong elsewhere what to do with them, ``hint`` what to write
        when there is no mapping.
        """
        if self.is_null:
            return {}
        if not self.is_mapping:
            self.wrong("a mapping", hint)
            return {}
        found: dict[str, At] = {}
        lines: dict[str, int] = {}
        merged: list[At] = []
        for key, value in self.node.value:
            self.document.visit()
            if not isinstance(key, yaml.ScalarNode):
                At(self.document, key, self.path).fail("key", "a key must be text", "text")
                continue
            name = str(key.value)
            if name == "<<" and not key.style:
                merged.extend(self._merged(value))
                continue
            place = At(self.document, value, self._under(name), key)
            if name in lines:
                place.name.fail(
                    "duplicate_key",
                    f"{name!r} is given twice, first in line {lines[name]}",
                    "one",
                    "two",
                )
            elif known is not None and name not in known:
                self._unknown(place.name, name, known, hints or {})
            else:
                found[name] = place
            lines.setdefault(name, key.start_mark.line + 1)
        for place in merged:
            name = str(place.name.node.value)
            if known is not None and name not in known:
                self._unknown(place.name, name, known, hints or {})
            else:
                found.setdefault(name, place)
        return found

    def _under(self, name: str) -> str:
        return f"{self.path}.{name}" if self.path else name

    def _merged(self, node: yaml.Node) -> Iterator[At]:
        sources = node.value if isinstance(node, yaml.SequenceNode) else [node]
        for source in sources:
            self.document.visit()
            if not isinstance(source, yaml.MappingNode) or source is self.node:
                At(self.document, node, self.path).fail(
                    "merge", "'<<' takes a mapping or a list of mappings", "a mapping"
                )
                continue
            for key, value in source.value:
                self.document.visit()
                if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                    yield At(self.document, value, self._under(str(key.value)), key)

    def _unknown(self, at: At, name: str, known: Collection[str], hints: Mapping[str, str]) -> None:
        near = difflib.get_close_matches(name, known, n=1)
        hint = hints.get(name) or (f"did you mean {near[0]!r}?" if near else "")
        at.fail(
            "unknown_key",
            f"unknown key {name!r}" + (f"; {hint}" if hint else ""),
            " | ".join(sorted(known)),
            name,
        )

    def items(self, hint: str = "") -> list[At]:
        """The elements of a list. Null is empty."""
        if self.is_null:
            return []
        if not self.is_sequence:
            dashed = isinstance(self.node, yaml.ScalarNode) and self.node.value.startswith("-")
            self.wrong("a list", "write a space after the dash" if dashed else hint)
            return []
        out = []
        for at, node in enumerate(self.node.value):
            self.document.visit()
            out.append(At(self.document, node, f"{self.path}[{at}]"))
        return out

    def text(self) -> str | None:
        """A scalar as it is written; None (noted) when it is a collection. Null is empty."""
        self.document.visit()
        if not isinstance(self.node, yaml.ScalarNode):
            self.wrong("text", "text with a ': ' in it needs quotes" if self._split() else "")
            return None
        return "" if self.is_null else str(self.node.value)

    def _split(self) -> bool:
        """One key with a value: rather a line of text than a mapping."""
        return self.is_mapping and [
            isinstance(value, yaml.ScalarNode) for _, value in self.node.value
        ] == [True]

    def texts(self, hint: str = "") -> list[str]:
        return [text for item in self.items(hint) if (text := item.text()) is not None]

    def integer(self, least: int, most: int, kind: str = "a whole number", hint: str = "") -> int:
        """A whole number; what is no number or out of range is noted, and ``least`` returned."""
        text = self.text()
        expected = f"{least}..{most}"
        if text is None:
            return least
        match = _INTEGER.match(text)
        if match is None:
            self.wrong(kind, hint)
            return least
        value = int(match[1])
        if not least <= value <= most:
            self.fail("out_of_range", f"{value} is not within {least} to {most}", expected, value)
            return least
        return value

    def boolean(self) -> bool:
        text = self.text()
        if text is None or self.is_null or text in _FALSE:
            return False
        if text not in _TRUE:
            self.fail("type", f"expected true or false, got {text!r}", "true | false", text)
        return text in _TRUE
