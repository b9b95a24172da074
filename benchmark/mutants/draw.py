"""Which mutants are tried: all that the operators make of four packages, and a draw of them by a fixed seed."""

import ast
import difflib
import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.ast.ast_query import ASTQuery
from cosmic_ray.mutating import mutate_code

from benchmark.mutants.operators import operators
from benchmark.mutants.sample import PACKAGES, Mutant, Place, shares

BARE_STAR = ("parameters", "lambdef")
"""Parents of a ``*`` between parameters, which is no multiplication."""


def places(root: Path, package: str) -> Iterator[Place]:
    """Every place of a package where an operator can act; annotations are left out, since nothing reads them."""
    for path in sorted((root / "medtune" / package).rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        yield from _places_of(str(path.relative_to(root)), source)


def _places_of(module: str, source: str) -> Iterator[Place]:
    lines, nodes, silent = source.splitlines(), list(ast_nodes(get_ast(source))), _annotations(ast.parse(source))
    alike: Counter[str] = Counter()
    for name, operator in operators().items():
        occurrence = 0
        for node in nodes:
            for start, _ in operator.mutation_positions(node):
                definition = ASTQuery(node).get_definition_name()
                key = f"{module}|{definition or ''}|{name}|{lines[start[0] - 1].strip()}"
                alike[key] += 1
                bare = getattr(node.parent, "type", None) in BARE_STAR and getattr(node, "value", "") == "*"
                if not bare and not any(first <= start < last for first, last in silent):
                    yield Place(module, name, occurrence, start[0], f"{key}|{alike[key]}")
                occurrence += 1


def _annotations(tree: ast.AST) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    found: list[Any] = []
    for node in ast.walk(tree):
        found += [getattr(node, name, None) for name in ("annotation", "returns")]
    return [((n.lineno, n.col_offset), (n.end_lineno, n.end_col_offset)) for n in found if isinstance(n, ast.expr)]


def mutated(root: Path, place: Place) -> str | None:
    """The file's text with the mutant in it; None where that is no Python, or the same program."""
    source = (root / place.module).read_text(encoding="utf-8")
    text = mutate_code(source, operators()[place.operator], place.occurrence)
    try:
        same = text is None or ast.dump(ast.parse(text)) == ast.dump(ast.parse(source))
    except SyntaxError:
        return None
    return None if same else text


def draw(root: Path, seed: int, count: int) -> tuple[list[Mutant], dict[str, int]]:
    """Draw mutants, and tell how many places each package has.

    Places are ordered by a hash of the seed and their key. A larger draw therefore begins with the smaller one, and a
    line that changes elsewhere leaves most of the draw as it was.
    """
    every = {name: list(places(root, name)) for name in PACKAGES}
    sizes = {name: len(found) for name, found in every.items()}
    drawn: list[Mutant] = []
    for package, share in shares(sizes, count).items():
        ordered = sorted(every[package], key=lambda place: hashlib.sha256(f"{seed}|{place.key}".encode()).digest())
        valid = (mutant for place in ordered if (mutant := _mutant(root, place)) is not None)
        drawn += [mutant for mutant, _ in zip(valid, range(share), strict=False)]
    return drawn, sizes


def _mutant(root: Path, place: Place) -> Mutant | None:
    text = mutated(root, place)
    if text is None:
        return None
    source = (root / place.module).read_text(encoding="utf-8")
    changes = [line for line in difflib.ndiff(source.splitlines(), text.splitlines()) if line[:2] in ("- ", "+ ")]
    sides = (" ".join(line[2:].strip() for line in changes if line[0] == sign) for sign in "-+")
    return Mutant(place, *sides)
