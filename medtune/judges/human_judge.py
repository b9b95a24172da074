"""People as the judge: their preferences are read from a file; several annotators decide by majority."""

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

from sklearn.metrics import cohen_kappa_score

from medtune.clients.messages import ChatRequest
from medtune.clients.served import RecordedClient
from medtune.data.writing import file_sha256
from medtune.errors import DataError
from medtune.judges.annotations import PREFERENCES, Annotation, read_annotations
from medtune.judges.base import Judgement, OpenImages
from medtune.judges.candidates import Candidate, HeldCandidates


@dataclass(frozen=True)
class HumanJudge:
    """Reads what people prefer. An answer is better if more than half of the annotators prefer it; else it is a tie.

    The scores are the shares of the votes. Without ``candidates`` in the config, the file's own questions are judged.

    Attributes:
        annotations: The file; see :func:`medtune.judges.annotations.read_annotations`.
        format: Its format; ``auto`` recognises it.
        fields: Names of a Label Studio project that differ from the default ones.
    """

    remote: ClassVar[bool] = False
    looks: ClassVar[bool] = False
    annotations: str
    format: Literal["auto", "jsonl", "label_studio"] = "auto"
    fields: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def read(self) -> list[Annotation]:
        """All annotations of the file."""
        return read_annotations(self.annotations, self.format, self.fields)

    @cached_property
    def by_candidate(self) -> dict[str, list[Annotation]]:
        """The annotations of each candidate, by its id."""
        found: dict[str, list[Annotation]] = defaultdict(list)
        for row in self.read:
            found[row.candidate.id].append(row)
        return dict(found)

    def candidates(self, image_root: str | None) -> "AnnotatedCandidates":
        """Return the file's own questions with their answers."""
        rows = [rows[0].candidate for rows in self.by_candidate.values()]
        return AnnotatedCandidates(self.annotations, rows, image_root)

    def identity(self) -> dict[str, Any]:
        """Return the file's checksum."""
        return {"name": "human", "annotations": file_sha256(Path(self.annotations).expanduser()) if self.read else ""}

    def versions(self) -> Sequence[str]:
        """Return nothing: it has no prompt."""
        return []

    def requests(self, candidate: Candidate, open_images: OpenImages) -> list[ChatRequest]:
        """Return nothing: it asks no server."""
        return []

    def judge(self, candidate: Candidate, open_images: OpenImages, client: RecordedClient | None) -> Judgement:
        """Return the majority's choice.

        Raises:
            DataError: The annotations of this id are on other answers.
        """
        rows = self.by_candidate.get(candidate.id)
        if rows is None:
            return Judgement(candidate.id, None, "not_annotated")
        if rows[0].candidate.answers != candidate.answers:
            raise DataError(
                f"candidate {candidate.id!r}: {rows[0].where} compares other answers; annotate these candidates, or "
                "leave `candidates` out to judge the file's own."
            )
        votes = Counter(row.preference for row in rows)
        first, second, n = votes["first"], votes["second"], len(rows)
        counts = (first, second, n - first - second)
        if 2 * max(first, second) > n:
            return Judgement(candidate.id, (first / n, second / n), votes=counts)
        tied = (first + second) / (2 * n)
        return Judgement(candidate.id, (tied, tied), votes=counts)

    def agreement(self) -> dict[str, Any]:
        """Return how far annotators agree on the candidates that several of them have annotated.

        ``observed`` is the share of equal choices over all pairs of annotators on a candidate; ``kappa`` is Cohen's
        (scikit-learn), the mean over pairs of annotators, weighted by the number of candidates that both annotated.
        None is undefined.
        """
        shared: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
        for rows in self.by_candidate.values():
            for one, other in itertools.combinations(sorted(rows, key=lambda row: row.annotator), 2):
                shared[one.annotator, other.annotator].append((one.preference, other.preference))
        pairs = [pair for chosen in shared.values() for pair in chosen]
        kappas = []
        for chosen in shared.values():
            kappa = float(cohen_kappa_score(*zip(*chosen, strict=True), labels=list(PREFERENCES)))
            if len(chosen) > 1 and not math.isnan(kappa):
                kappas.append((kappa, len(chosen)))
        weight = sum(n for _, n in kappas)
        return {
            "annotators": len({row.annotator for row in self.read}),
            "annotations": len(self.read),
            "candidates": len(self.by_candidate),
            "compared": len(pairs),
            "observed": sum(one == other for one, other in pairs) / len(pairs) if pairs else None,
            "kappa": sum(kappa * n for kappa, n in kappas) / weight if weight else None,
        }


class AnnotatedCandidates(HeldCandidates):
    """The questions of an annotation file, with the interface of :class:`medtune.judges.candidates.CandidateSource`.

    Args:
        path: The file, for names.
        rows: Its candidates.
        image_root: Folder or ``.tar`` of the images; None if they are not opened.
    """

    def __init__(self, path: str, rows: Sequence[Candidate], image_root: str | None) -> None:
        self.path, self._rows = Path(path).expanduser(), rows
        super().__init__(self.path.stem, self.path.name, image_root)

    def __len__(self) -> int:
        """Return the number of candidates."""
        return len(self._rows)

    def __getitem__(self, index: int) -> Candidate:
        """Return a candidate."""
        return self._rows[index]

    def fingerprint(self) -> str:
        """Return the SHA-256 of the file."""
        return file_sha256(self.path)
