"""What is drawn: places where an operator can act, and the changes made there."""

from collections.abc import Mapping
from dataclasses import dataclass

PACKAGES = ("losses", "objectives", "evaluation", "training")


@dataclass(frozen=True)
class Place:
    """Where an operator can act.

    Attributes:
        module: Path of the file, from the root of the checkout.
        operator: Name of the operator.
        occurrence: How many places of this operator stand before it in the file.
        line: Line of the place, from 1.
        key: The same for the same mutant, also after lines elsewhere have changed.
    """

    module: str
    operator: str
    occurrence: int
    line: int
    key: str

    @property
    def package(self) -> str:
        """The package of medtune that the file belongs to."""
        return self.module.split("/")[1]


@dataclass(frozen=True)
class Mutant:
    """A place with the change that is made there: the lines that go, and those that come."""

    place: Place
    before: str
    after: str


def shares(sizes: Mapping[str, int], count: int) -> dict[str, int]:
    """How many of ``count`` each package gets, in proportion to its size (largest remainders)."""
    exact = {name: count * size / sum(sizes.values()) for name, size in sizes.items()}
    given = {name: int(share) for name, share in exact.items()}
    rest = sorted(exact, key=lambda name: given[name] - exact[name])[: count - sum(given.values())]
    return {name: given[name] + (name in rest) for name in sizes}
