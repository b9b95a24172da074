"""Let a judge choose the better of two answers to each question, and write preference pairs; a killed run continues.

The judge is a served model, a rule of known truth, or people whose choices are in a file. Nothing is asked twice: every
reply is kept in a cache. With ``compare`` the two answers are those of two models, and the win rate is measured. With
``score`` each answer of one model is scored beside a reference answer, for the evaluate recipe.
"""

import json
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from medtune.clients.budget import Budget, BudgetSpentError
from medtune.clients.served import RecordedClient, ServedModel, estimate_lines
from medtune.config import Component, instantiate, recipe
from medtune.data.folders import claim as claim_folder
from medtune.data.writing import file_sha256, json_bytes, measured, write_files
from medtune.errors import ConfigError, DataError
from medtune.evaluation.prediction import write_predictions
from medtune.evaluation.provenance import commit, versions
from medtune.generation.identity import claim
from medtune.judges.base import Judge, Judgement
from medtune.judges.candidates import CandidateSource
from medtune.judges.chat_judge import ChatJudge
from medtune.judges.comparison import ComparedAnswers, win_rate
from medtune.judges.human_judge import HumanJudge
from medtune.judges.judging import DROPPED, Candidates, JudgementLog, Judging, bias_of, counts, run_id
from medtune.judges.scored_answers import ScoredAnswers, described
from medtune.judges.verdict_judge import VerdictJudge

WRITES = (
    "judgements.jsonl",
    "judgements.meta.json",
    "pairs.jsonl",
    "manifest.json",
    "pairs.html",
    "graded.jsonl",
    "graded.meta.json",
    "run.json",
    "replies.jsonl",
    "replies.jsonl.lock",
)
"""All files that a run writes into its folder."""
LISTED = 20
"""Skipped candidates that the manifest names."""


@dataclass
class JudgeConfig:
    """Every key of a run of a judge."""

    output_dir: str = field(metadata={"help": "folder of pairs.jsonl, manifest.json and the judgements"})
    judge: Component = field(
        metadata={"help": "ModelJudge, VerdictJudge, ChatJudge, AttributeJudge, HumanJudge, or your own"}
    )
    candidates: str | None = field(
        default=None, metadata={"help": "JSON Lines of questions with two answers; null takes a human judge's own"}
    )
    compare: list[str] | None = field(
        default=None,
        metadata={"help": "in place of candidates, answers of two models (predictions.jsonl): the second's win rate"},
    )
    score: str | None = field(
        default=None,
        metadata={"help": "in place of candidates, answers of one model to the protocol chat: scored by a ChatJudge"},
    )
    questions: str | None = field(
        default=None,
        metadata={"help": "with compare or score: the question file, which completes answers of other programs"},
    )
    image_root: str | None = field(default=None, metadata={"help": "folder or .tar of the images"})
    server: ServedModel | None = field(default=None, metadata={"help": "the served model that a ModelJudge asks"})
    budget: Budget = field(default_factory=Budget, metadata={"help": "max_cost, max_tokens, max_requests; null: none"})
    cache: str | None = field(
        default=None, metadata={"help": "file of the replies; null: replies.jsonl in output_dir; runs may share one"}
    )
    ties: Literal["drop", "second"] = field(
        default="drop", metadata={"help": "drop: no pair; second: the second answer wins (STLLaVA-Med's code)"}
    )
    limit: int | None = field(default=None, metadata={"help": "only the first N candidates"})
    on_error: Literal["raise", "skip"] = field(
        default="raise", metadata={"help": "what to do with a candidate that cannot be used"}
    )
    stop_after_unread: int | None = field(
        default=25, metadata={"help": "stop if none of the first N candidates gets scores; null never stops"}
    )
    samples: int = field(
        default=0, metadata={"help": "pairs shown in pairs.html with images and texts of patients; 0 writes no page"}
    )
    dry_run: bool = field(default=False, metadata={"help": "print one request and the estimate; ask nothing"})

    def __post_init__(self) -> None:
        """Refuse invalid sizes, and two kinds of candidates."""
        if self.compare is not None and (len(self.compare) != 2 or self.candidates is not None):
            raise ValueError("compare takes two files of answers, and then candidates must be null")
        if self.score is not None and (self.candidates is not None or self.compare is not None):
            raise ValueError("score takes one file of answers, and then candidates and compare must be null")
        if self.questions is not None and self.score is None and self.compare is None:
            raise ValueError("questions complete answers that are compared or scored; set compare or score")
        for name in ("limit", "stop_after_unread"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")


@recipe(JudgeConfig)
def main(config: JudgeConfig) -> int:
    """Judge the candidates and write the pairs."""
    judge: Judge = instantiate(config.judge)
    if judge.remote and config.server is None:
        raise ConfigError("this judge asks a served model; set server.base_url and server.model")
    keep_words = config.score is not None or config.compare is not None
    judging = Judging(judge, _source(config, judge), config.limit, config.on_error == "skip", keep_words)
    if config.dry_run:
        return _dry_run(config, judging)
    folder = Path(config.output_dir)
    claim_folder(folder, "judge", WRITES, lambda path: (path / "judgements.meta.json").is_file())
    with JudgementLog(folder / "judgements.jsonl") as log:
        claim(log.path, _identity(config, judge, judging.source))
        log.recover()
        if log.cut:
            _say(f"{log.path}: cut off a torn last line of {log.cut} bytes")
        if not judge.remote:
            return _run(config, judging, log, None)
        assert config.server is not None
        cache = Path(config.cache) if config.cache else folder / "replies.jsonl"
        with RecordedClient(config.server, cache, run_id(folder), config.budget, _say) as client:
            client.tell_versions(judge.versions())
            return _run(config, judging, log, client)


def _source(config: JudgeConfig, judge: Judge) -> Candidates:
    if isinstance(judge, ChatJudge) != (config.score is not None):
        raise ConfigError(
            "a ChatJudge scores answers beside reference answers: set score to the predictions.jsonl of a model; "
            "without score choose another judge"
        )
    if config.score is not None:
        return ScoredAnswers(config.score, config.image_root, config.questions)
    if config.compare is not None:
        first, second = config.compare
        return ComparedAnswers(first, second, config.image_root, config.questions)
    if config.candidates is not None:
        return CandidateSource(config.candidates, config.image_root)
    if isinstance(judge, HumanJudge):
        return judge.candidates(config.image_root)
    raise ConfigError("key 'candidates' is missing; give the JSON Lines file of questions with two answers")


def _identity(config: JudgeConfig, judge: Judge, source: Candidates) -> dict[str, Any]:
    """Return what the judgements depend on; rules for ties and limits are applied to them afterwards."""
    server = {"server": config.server.identity()} if judge.remote and config.server else {}
    return {"judge": judge.identity(), "candidates": source.fingerprint(), **server}


def _run(config: JudgeConfig, judging: Judging, log: JudgementLog, client: RecordedClient | None) -> int:
    known = sum(candidate.id in log.done for candidate in judging.candidates())
    concurrency = config.server.concurrency if client is not None and config.server is not None else 1
    bar = tqdm(total=judging.total, initial=known, unit="pair", desc="judge", smoothing=0.1)

    def judged() -> None:
        bar.update()
        _stop_unread(config, log)

    try:
        _stop_unread(config, log)
        judging.run(log, client, concurrency, judged)
    except KeyboardInterrupt:
        bar.close()
        _write_manifest(config, judging, log, client, complete=False)
        _say(f"interrupted; {len(log.done)} judgements are in {log.path}, the same command goes on")
        return 130
    except BudgetSpentError:
        bar.close()
        _write_manifest(config, judging, log, client, complete=False)
        raise
    finally:
        bar.close()
    return _finish(config, judging, log, client)


def _stop_unread(config: JudgeConfig, log: JudgementLog) -> None:
    """Stop a judge that never gives scores, before it has cost more."""
    limit, done = config.stop_after_unread, log.done.values()
    if limit is None or len(done) < limit or any(judgement.scores is not None for judgement in done):
        return
    reasons = Counter(judgement.reason for judgement in done if judgement.reason not in DROPPED)
    if reasons.total() >= limit:
        found = ", ".join(f"{reason} {n}" for reason, n in reasons.most_common())
        raise DataError(
            f"none of the first {reasons.total()} judgements has scores ({found}); see docs/judges.md for what a reply "
            "must look like, choose another prompt, model and output_dir, or set stop_after_unread=null"
        )


def _finish(config: JudgeConfig, judging: Judging, log: JudgementLog, client: RecordedClient | None) -> int:
    folder = Path(config.output_dir)
    if isinstance(judging.source, ScoredAnswers):
        return _write_scores(config, judging, log, client, judging.source)
    pairs = measured(lambda: judging.pairs(log.done, config.ties, _who(config, judging.judge)))
    write_files(folder, {"pairs.jsonl": pairs}, overwrite=True)
    manifest = _write_manifest(config, judging, log, client, complete=True)
    found, won = manifest["counts"], manifest["win_rate"]
    unread = _listed(found["unread"])
    if config.samples:
        page = _page(config, judging, folder)
        write_files(folder, {"pairs.html": page.encode()}, overwrite=True)
    summary = f"{found['pairs']} pairs of {found['judged']} judged, {found['ties']} ties, unread: {unread}"
    if not found["pairs"] and config.compare is None:
        raise DataError(f"{folder / 'pairs.jsonl'} is empty: {summary}; see {folder / 'manifest.json'}")
    print(f"{summary}; {len(judging.skipped)} skipped; written to {folder / 'pairs.jsonl'}")
    if won is not None and won["rate"]["value"] is not None:
        ends = won["rate"]["interval"]
        span = "" if ends is None else f" [{100 * ends[0]:.1f}, {100 * ends[1]:.1f}]"
        tied = won["ties"] + won["identical"]
        print(
            f"win rate {100 * won['rate']['value']:.1f}%{span}: {won['wins']} wins, {tied} ties, {won['losses']} losses"
        )
    return 0


def _write_scores(
    config: JudgeConfig, judging: Judging, log: JudgementLog, client: RecordedClient | None, source: ScoredAnswers
) -> int:
    """Write the answers with their scores, and the record from which evaluate reads what predict was asked."""
    folder, record = Path(config.output_dir), source.path.with_suffix(".meta.json")
    asked = {candidate.id for candidate in judging.candidates()}
    who = _who(config, judging.judge)
    done = {name: judgement for name, judgement in log.done.items() if name in asked}
    write_predictions(folder / "graded.jsonl", source.graded(done, described(who)))
    if record.is_file():
        write_files(folder, {"graded.meta.json": record.read_bytes()}, overwrite=True)
    found = _write_manifest(config, judging, log, client, complete=True)["counts"]
    read = found["judged"] - sum(found["unread"].values())
    print(
        f"{read} of {judging.total} answers scored, unread: {_listed(found['unread'])}; {len(judging.skipped)} "
        f"skipped; evaluate {folder / 'graded.jsonl'}"
    )
    return 0


def _listed(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {n}" for reason, n in reasons.items()) or "0"


def _page(config: JudgeConfig, judging: Judging, folder: Path) -> str:
    """Return the page of the pairs; images are opened by their path, as candidates name them."""
    from medtune.reporting.gallery import image_opener  # matplotlib takes a while to import
    from medtune.reporting.preferences import preference_sections
    from medtune.reporting.report import render_sections

    opener = None if config.image_root is None else image_opener(config.image_root)
    title = f"Preference pairs of {judging.source.name}"
    return render_sections(preference_sections(folder, config.samples, opener), title=title)


def _who(config: JudgeConfig, judge: Judge) -> dict[str, Any]:
    """Return what every pair says of its judge."""
    model = {"model": config.server.model} if judge.remote and config.server else {}
    return {"judge": judge.identity(), **model}


def _write_manifest(
    config: JudgeConfig, judging: Judging, log: JudgementLog, client: RecordedClient | None, complete: bool
) -> dict[str, Any]:
    ids = [candidate.id for candidate in judging.candidates()]
    found = counts(log.done, iter(ids), config.ties)
    judge, folder = judging.judge, Path(config.output_dir)
    written = folder / ("pairs.jsonl" if config.score is None else "graded.jsonl")
    manifest = {
        "complete": complete,
        **_who(config, judge),
        "candidates": {"file": judging.source.name, "fingerprint": judging.source.fingerprint(), "rows": judging.total},
        "ties_rule": config.ties,
        "counts": {**found, "skipped": len(judging.skipped)},
        "skipped": dict(list(judging.skipped.items())[:LISTED]),
        "position_bias": bias_of(log.done, iter(ids)),
        "win_rate": None if config.compare is None else win_rate(log.done, judging.candidates(), _points(judge)),
        "scored": None if config.score is None else config.score,
        "agreement": judge.agreement() if isinstance(judge, HumanJudge) else None,
        "replies": _replies(log, ids, client),
        f"{written.stem}_sha256": file_sha256(written) if complete else None,
        "versions": versions(),
        "commit": commit(),
    }
    write_files(folder, {"manifest.json": json_bytes(manifest)}, overwrite=True)
    return manifest


def _points(judge: Judge) -> bool:
    """Return whether the judge's scores are points of a win."""
    return isinstance(judge, VerdictJudge)


def _replies(log: JudgementLog, ids: list[str], client: RecordedClient | None) -> dict[str, Any] | None:
    """Return what was asked and what it cost, over all starts of this run."""
    if client is None:
        return None
    return {**client.spending(), "from_cache": sum(log.done[id].cached for id in ids if id in log.done)}


def _dry_run(config: JudgeConfig, judging: Judging) -> int:
    """Print one request as it would be sent, and what all of them would take; nothing is sent or written."""
    done = _judged_before(Path(config.output_dir) / "judgements.jsonl")
    candidates = list(judging.candidates())
    unusable = Counter(candidate.unusable for candidate in candidates if candidate.unusable)
    dropped = ", ".join(f"{reason} {n}" for reason, n in unusable.items()) or "none"
    known = sum(candidate.id in done for candidate in candidates)
    print(f"candidates: {len(candidates)}; with nothing to choose: {dropped}; judged before: {known}")
    if not judging.judge.remote or config.server is None:
        print("this judge asks no server")
        return 0
    server = config.server
    images, most, example = judging.estimate(server, done)
    if example is not None:
        print(f"one request, as it would be sent:\n\n{server.shown_request(example)}\n")
    print("\n".join(estimate_lines(most, server.prices, config.budget, "nothing has been sent")))
    print(f"images: {images} would be sent, all to {server.base_url}" if images else "images: none would be sent")
    return 0


def _judged_before(path: Path) -> dict[str, Judgement]:
    """Read a log without changing it; a torn last line is left out."""
    found = {}
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            judgement = Judgement.from_dict(json.loads(line))
        except (ValueError, KeyError, TypeError):
            continue
        found[judgement.id] = judgement
    return found


def _say(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
