"""Which wrong lines are made: a set of cosmic-ray's operators, and three kinds that it does not have.

cosmic-ray replaces each arithmetic operator by every other one, and most of these fail with a TypeError at once. One
replacement is kept for each operator, the nearest, so that a killed mutant says something of the tests.
"""

import re
from collections.abc import Iterator
from typing import Any

import cosmic_ray.plugins
from cosmic_ray.operators.operator import Operator
from parso.python.tree import Name

KEPT = re.compile(
    r"core/(AddNot|ExceptionReplacer|NumberReplacer|RemoveDecorator|ZeroIterationForLoop|Replace("
    r"TrueWithFalse|FalseWithTrue|AndWithOr|OrWithAnd|BreakWithContinue|ContinueWithBreak"
    r"|BinaryOperator_(Add_Sub|Sub_Add|Mul_Div|Div_Mul|FloorDiv_Div|Mod_FloorDiv|Pow_Mul|BitOr_BitAnd|BitAnd_BitOr"
    r"|LShift_RShift|RShift_LShift)"
    r"|ComparisonOperator_(Eq_NotEq|NotEq_Eq|Lt_LtE|LtE_Lt|Gt_GtE|GtE_Gt|Is_IsNot|IsNot_Is)"
    r"|UnaryOperator_Delete_(USub|Not|Invert)))"
)
Position = tuple[tuple[int, int], tuple[int, int]]


class _Deletion(Operator):
    """Shared by the operators that take something away: ``found`` lists what, as ranges of a node's children."""

    def found(self, node: Any) -> list[tuple[int, int]]:
        """Which children can go, as ranges."""
        raise NotImplementedError

    def mutation_positions(self, node: Any) -> Iterator[Position]:
        """Where what can go stands."""
        # A list first: the visitor asks for the next position after it has changed the node.
        ranges = self.found(node)
        yield from [(node.children[start].start_pos, node.children[stop - 1].end_pos) for start, stop in ranges]

    def mutate(self, node: Any, index: int) -> Any:
        """Takes it away, with a comma beside it."""
        start, stop = self.found(node)[index]
        children = node.children
        if stop < len(children) and getattr(children[stop], "value", "") == ",":
            stop += 1
        elif start and getattr(children[start - 1], "value", "") == ",":
            start -= 1
        node.children = [*children[:start], *children[stop:]]
        return node

    @classmethod
    def examples(cls) -> tuple[()]:
        """None: tests/benchmark/test_mutants.py has them."""
        return ()


class DeleteArgument(_Deletion):
    """``f(x, seed=1)`` becomes ``f(x)``: a keyword argument is forgotten."""

    def found(self, node: Any) -> list[tuple[int, int]]:
        """The keyword arguments of a call."""
        if node.type not in ("arglist", "trailer", "decorator"):
            return []
        return [
            (place, place + 1)
            for place, child in enumerate(node.children)
            if child.type == "argument" and getattr(child.children[1], "value", "") == "="
        ]


class DeleteEntry(_Deletion):
    """``{"a": 1, "b": 2}`` becomes ``{"a": 1}``: an entry of a dictionary is forgotten."""

    def found(self, node: Any) -> list[tuple[int, int]]:
        """The entries ``key: value`` of a dictionary."""
        if node.type != "dictorsetmaker" or node.children[-1].type in ("comp_for", "sync_comp_for"):
            return []
        colons = [place for place, child in enumerate(node.children) if getattr(child, "value", "") == ":"]
        return [(place - 1, place + 2) for place in colons]


class DeleteStatement(Operator):
    """A call, a change of an attribute or an entry, or a ``raise`` becomes ``pass``."""

    def mutation_positions(self, node: Any) -> Iterator[Position]:
        """Where such a statement stands."""
        if node.type == "simple_stmt" and self._acts(node.children[0]):
            yield node.children[0].start_pos, node.children[0].end_pos

    def mutate(self, node: Any, index: int) -> Any:
        """Puts ``pass`` in its place."""
        first = node.children[0]
        node.children[0] = Name("pass", first.start_pos, prefix=first.get_first_leaf().prefix)
        return node

    @staticmethod
    def _acts(statement: Any) -> bool:
        if statement.type == "expr_stmt":  # `name = value` alone is left: without it Python fails by itself
            second = statement.children[1]
            return statement.children[0].type in ("atom_expr", "power") or getattr(second, "value", "=") not in (
                "=",
                ":",
            )
        return statement.type in ("atom_expr", "power", "raise_stmt")

    @classmethod
    def examples(cls) -> tuple[()]:
        """None: tests/benchmark/test_mutants.py has them."""
        return ()


def operators() -> dict[str, Operator]:
    """Every operator that mutants are made with, by its name, in one order."""
    names = sorted(name for name in cosmic_ray.plugins.operator_names() if KEPT.fullmatch(name))
    kept: dict[str, Operator] = {name: cosmic_ray.plugins.get_operator(name)() for name in names}
    own = (DeleteArgument, DeleteEntry, DeleteStatement)
    return kept | {f"own/{kind.__name__}": kind() for kind in own}
