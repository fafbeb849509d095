"""What a public docstring must say, told from the code beside it; see test_docstrings.py.

Public is what the pages of docs/api name. The rules, for functions, methods and classes:

- each parameter (of a class: each field) that is an array is named, and has a shape such as [N, C, H,
W] in its
  entry, or behind its name in a sentence; so has an array that is returned;
- sizes, boxes and pixels are named and have their unit, so have seconds and bytes;
- every exception that the code raises is named, be it raised by a private helper or by a shared check;
- what implements an equation says which, or whose it is.

A docstring may refer to another public one ("as ``cxr_fast.ops.cam``"), which then answers for it; a
method that says "See ``BatchMiner``" refers to that class's method of its name.
"""

from __future__ import annotations

import ast
import builtins
import dataclasses
import functools
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

DOCS = Path(__file__).parents[2] / "docs"
ARRAY = re.compile(r"\b(Tensor|NDArray|ArrayLike|FloatArray|IntArray|AnyArray|Pixels|U8|ImageStack)\b")
_AXIS = (
    r"(?:\.\.\.|[A-Z]\w*|(?:\d+ or )?\d+|size|rows|columns|height|width|maps|images|steps|upsample|n)"
)
_AXES = rf"{_AXIS}(?: [*+-] {_AXIS}| / \d+)*"
SHAPE = re.compile(rf"\[(?=[^\]]*[A-Za-z.]){_AXES}(?:, ?{_AXES})*,?\]|\bscalars?\b")
UNITS = (
    (re.compile(r"(?:^|_)(?:size|sizes|boxes|pixels)$"), re.compile(r"\bpixels?\b|\bunit of\b")),
    (re.compile(r"(?:^|_)(?:seconds|timeout)$"), re.compile(r"\bseconds?\b")),
    (re.compile(r"(?:^|_)(?:bytes|memory)$"), re.compile(r"\bbytes?\b|\bB\b")),
)
NO_PIXELS = {"batch_size", "shard_size", "max_boxes", "path_or_bytes"}  # counts, and bytes themselves
SOURCE = re.compile(
    r"\b(?:Eq|Sec|Fig)\. ?\d|\bTables? \d|et al\.|\b[A-Z][a-z]+ (?:and [A-Z][a-z]+ )?\d{4}\b"
    r"|Source: \S.{9}"
)
# Modules that implement equations, where each function says which.
WITH_SOURCE = (
    "cxr_fast.ops",
    "cxr_fast.runtime",
    "cxr_fast.reference",
    "cxr_fast.losses",
    "cxr_fast.metrics",
)
# Functions that refuse arguments for others: what they raise is raised by the caller.
CHECKS = {
    "cxr_fast.checks",
    "cxr_fast.ops.library",
    "cxr_fast.metrics.checks",
    "cxr_fast.archive.tables",
}


class Public(NamedTuple):
    """A public thing: under which name, and what it is."""

    name: str
    thing: Any

    @property
    def text(self) -> str:
        """The docstring that is written there, not one that is inherited."""
        own = self.thing.fget if isinstance(self.thing, property) else self.thing
        return inspect.cleandoc(own.__doc__ or "")

    @property
    def words(self) -> str:
        """The docstring on one line."""
        return re.sub(r"\s+", " ", self.text)


@functools.cache
def documented() -> tuple[Public, ...]:
    """Everything that the pages of docs/api name, methods included."""
    found: dict[str, Public] = {}
    for page in sorted((DOCS / "api").glob("*.md")):
        for name, members in re.findall(
            r"^\.\. automodule:: (\S+)\n   :members:(.*)$", page.read_text(), re.MULTILINE
        ):
            module = importlib.import_module(name)
            for member in [one.strip() for one in members.split(",") if one.strip()] or names_of(
                module
            ):
                thing = getattr(module, member)
                if inspect.isclass(thing) or inspect.isfunction(inspect.unwrap(thing)):
                    found[f"{name}.{member}"] = Public(f"{name}.{member}", thing)
                    if inspect.isclass(thing):
                        found |= {one.name: one for one in methods(f"{name}.{member}", thing)}
    return tuple(found.values())


def names_of(module: ModuleType) -> list[str]:
    """What a module exports, or else the functions and classes that it defines."""
    if hasattr(module, "__all__"):
        return list(module.__all__)
    return [
        name
        for name, thing in vars(module).items()
        if not name.startswith("_") and getattr(thing, "__module__", None) == module.__name__
        and (inspect.isclass(thing) or inspect.isfunction(thing))
    ]  # fmt: skip


def methods(name: str, kind: type) -> Iterator[Public]:
    """What a class defines itself, and its users call."""
    for member, thing in vars(kind).items():
        if member.startswith("_"):
            continue
        if isinstance(thing, (classmethod, staticmethod)):
            thing = thing.__func__
        if isinstance(thing, property) or inspect.isfunction(inspect.unwrap(thing)):
            yield Public(f"{name}.{member}", thing)


def faults(one: Public) -> list[str]:
    """What the docstring leaves out."""
    if len(one.words) < 20 and not referred(one):
        return ["has no docstring"]
    if isinstance(one.thing, property):
        return []
    found = []
    for name, annotation in arguments(one.thing).items():
        if ARRAY.search(annotation) and not _gives_shape(one, name):
            found.append(f"gives no shape of {name}")
        for wanted, unit in UNITS:
            counted = name in NO_PIXELS or (name.endswith("boxes") and not ARRAY.search(annotation))
            if wanted.search(name) and not counted and not _gives_unit(one, name, unit):
                found.append(f"gives no unit of {name}")
    returned = getattr(inspect.unwrap(one.thing), "__annotations__", {}).get("return", "")
    if not inspect.isclass(one.thing) and ARRAY.search(str(returned)) and not _returns_shape(one):
        found.append("gives no shape of what it returns")
    for error in sorted(raised(one.thing), key=lambda error: error.__name__):
        names = "|".join(base.__name__ for base in error.__mro__[:-3])
        if not _says(one, re.compile(rf"\b(?:{names})\b")):
            found.append(f"does not say that it raises {error.__name__}")
    computes = any(ARRAY.search(annotation) for annotation in arguments(one.thing).values())
    if computes and _is_function(one) and one.name.startswith(WITH_SOURCE) and not _says(one, SOURCE):
        found.append("names no equation or source")
    return found


def _is_function(one: Public) -> bool:
    return not inspect.isclass(one.thing)


def arguments(thing: Any) -> dict[str, str]:
    """Parameters, or the fields of a class, with their annotations as text."""
    if inspect.isclass(thing):
        if dataclasses.is_dataclass(thing):
            own = vars(thing).get("__annotations__", {})
            return {f.name: str(f.type) for f in dataclasses.fields(thing) if f.name in own}
        if issubclass(thing, tuple):
            return {
                name: str(thing.__annotations__.get(name, "")) for name in getattr(thing, "_fields", ())
            }
        if getattr(thing, "_is_protocol", False):
            return {}
        if "__init__" not in vars(thing) or issubclass(thing, BaseException):
            return {}
        thing = thing.__init__
    parameters = inspect.signature(thing).parameters.values()
    return {p.name: str(p.annotation) for p in parameters if p.name not in ("self", "cls")}


def raised(thing: Any) -> set[type[BaseException]]:
    """Exceptions that the code itself raises, its private helpers and shared checks included."""
    if inspect.isclass(thing):
        names = () if getattr(thing, "_is_protocol", False) else ("__init__", "__post_init__")
        bodies = [vars(thing)[name] for name in names if name in vars(thing)]
        bodies = [body for body in bodies if "<string>" not in body.__code__.co_filename]
    else:
        bodies = [inspect.unwrap(thing)]
    found: set[type[BaseException]] = set()
    seen: set[Any] = set()
    while bodies:
        body = bodies.pop()
        if body in seen:
            continue
        seen.add(body)
        for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(body)))):
            if isinstance(node, ast.Raise) and node.exc is not None:
                error = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
                kind = _resolve(error, body)
                if inspect.isclass(kind) and issubclass(kind, Exception):
                    found.add(kind)
                elif inspect.isfunction(kind):  # raise _refusal(...)
                    name = str(kind.__annotations__.get("return", ""))
                    found |= {kind.__globals__[name]} if name in kind.__globals__ else (
                        {getattr(builtins, name)} if hasattr(builtins, name) else set()
                    )  # fmt: skip
            elif isinstance(node, ast.Call):
                called = _resolve(node.func, body)
                if isinstance(called, FunctionType) and _is_helper(called, body):
                    bodies.append(called)
    return {kind for kind in found if kind is not NotImplementedError}


def _is_helper(called: FunctionType, caller: FunctionType) -> bool:
    if called.__module__ in CHECKS:
        return True
    return called.__name__.startswith("_") and called.__module__ == caller.__module__


def _resolve(node: ast.expr, body: FunctionType) -> Any:
    """The object that a name, or a module's attribute, stands for."""
    if isinstance(node, ast.Name):
        return body.__globals__.get(node.id, getattr(builtins, node.id, None))
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return getattr(body.__globals__.get(node.value.id), node.attr, None)
    return None


def _entry(one: Public, name: str) -> str:
    """The lines below ``Args:`` about a parameter."""
    found = re.search(rf"^ {{4}}\*?{name}: (.*(?:\n {{5,}}.*)*)", one.text, re.MULTILINE)
    return re.sub(r"\s+", " ", found.group(1)) if found else ""


def _sentences(one: Public) -> list[str]:
    return re.split(r"(?<=[a-z0-9`\])])(?<!\bEq)(?<!\bSec)[.;] ", one.words)


def _gives_unit(one: Public, name: str, unit: re.Pattern[str]) -> bool:
    return any(
        re.search(rf"\b{name}\b", other.words, re.IGNORECASE) and unit.search(other.words)
        for other in _answering(one, name)
    )


def _gives_shape(one: Public, name: str) -> bool:
    for other in _answering(one, name):
        if SHAPE.search(_entry(other, name)):
            return True
        for sentence in _sentences(other):
            place = re.search(rf"\b{name}s?\b", sentence, re.IGNORECASE)
            if place and SHAPE.search(sentence, place.end()):
                return True
    return False


def _returns_shape(one: Public) -> bool:
    for other in _answering(one):
        section = re.search(r"Returns: (.*?)(?:Raises:|Source:|$)", other.words)
        for sentence in [section.group(1)] if section else _sentences(other):
            told = r"->|\breturns?\b|\bgives?\b|\bto\b|:|^"
            place = re.search("^" if section else told, sentence, re.IGNORECASE)
            if place and SHAPE.search(sentence, place.end()):
                return True
    return False


def _says(one: Public, wanted: re.Pattern[str]) -> bool:
    return any(wanted.search(other.words) for other in _answering(one))


def _answering(one: Public, name: str | None = None) -> Iterator[Public]:
    """The docstring itself, and those that it refers to, which have the parameter ``name``, too."""
    reached = [one]
    for each in reached:
        reached += [other for other in referred(each) if other not in reached]
        if each is one or name is None or name in arguments(each.thing):
            yield each


def referred(one: Public) -> list[Public]:
    """Public docstrings that this one refers to by ``name`` behind as, of, see, or the like."""
    by_name = {other.name: other for other in documented()}
    home, _, own = one.name.rpartition(".")
    found = []
    pattern = r"\b(?:as|of|see|in|what|by|for|from|to|table) (?::\w+:)?`{1,2}([\w.]+)`{1,2}"
    for name in re.findall(pattern, one.words, re.IGNORECASE):
        places = (f"{home}.{name}", f"{home.rpartition('.')[0]}.{name}", f"cxr_fast.{name}", name)
        ends = [known for known in by_name if known.endswith(f".{name}")]
        full = next(
            (place for place in (*places, *ends) if place in by_name and place != one.name), None
        )
        if full:
            found.append(by_name.get(f"{full}.{own}", by_name[full]))
    return found
