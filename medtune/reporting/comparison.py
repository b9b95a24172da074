"""Each run against the first one, paired by question."""

from typing import Any

from medtune.evaluation.evaluation import plain
from medtune.evaluation.retention import COMPONENTS
from medtune.evaluation.scoring import paired_difference
from medtune.reporting.runs import Run
from medtune.reporting.summary import PROTOCOL_TITLES


def compare(base: Run, run: Run, *, draws: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Differences ``run`` minus ``base`` on the true images, on the queries that both answered.

    Args:
        base: The run to compare with.
        run: The run to compare.
        draws: Bootstrap draws.
        seed: Seed of the draws.

    Returns:
        ``{protocol: number, ..., "retention": number}``; what a run lacks the verdicts for is left out.
    """
    shared = [
        (base.verdicts[one], run.verdicts[one])
        for one in run.verdicts
        if one in base.verdicts and run.verdicts[one]["swapped"] == "0"
    ]
    numbers = {}
    for task in PROTOCOL_TITLES:
        pairs = [pair for pair in shared if pair[0]["task"] == task]
        if pairs:
            numbers[task] = paired_difference(
                [float(second["correct"]) - float(first["correct"]) for first, second in pairs],
                [first["attribute"] for first, _ in pairs],
                [first["images"] for first, _ in pairs],
                f"accuracy minus that of {base.name}",
                draws,
                seed,
            )
    pairs = [pair for pair in shared if pair[0]["task"] in COMPONENTS]
    if pairs:  # retention's composite is a mean over components: they take the attributes' place
        number = paired_difference(
            [float(second["in_format"]) - float(first["in_format"]) for first, second in pairs],
            [first["task"] for first, _ in pairs],
            [first["images"] for first, _ in pairs],
            "",
            draws,
            seed,
        )
        text = f"composite retention minus that of {base.name}, paired by query; interval by a bootstrap over images"
        numbers["retention"] = type(number)(**{**vars(number), "definition": text})
    return dict(plain(numbers))
