"""Which findings a report states: wordings, denial, lists, and the agreement with people who indexed real reports."""

import pytest

from medtune.evaluation.reports.findings import FINDINGS, WORDINGS, stated_findings
from tests.evaluation.reports.openi import MESH, read_openi


@pytest.mark.parametrize(
    ("report", "stated"),
    [
        ("The heart is enlarged. Small left pleural effusion.", ("cardiomegaly", "pleural effusion")),
        ("Mild cardiomegaly with pulmonary vascular congestion.", ("cardiomegaly", "congestion or edema")),
        ("Bibasilar opacities, likely atelectasis.", ("atelectasis", "airspace opacity")),
        ("Left chest port-a-cath. Healed rib fractures.", ("fracture", "device")),
        ("Hyperexpanded lungs with flattened diaphragms.", ("emphysema or hyperinflation",)),
        ("Degenerative changes are present in the thoracic spine.", ("degenerative spine",)),
        ("Possible pneumonia in the right base.", ("pneumonia",)),
        ("The lungs are clear. Heart size is normal.", ()),
        ("", ()),
    ],
)
def test_stated_findings_are_named(report: str, stated: tuple[str, ...]) -> None:
    assert stated_findings(report) == stated


@pytest.mark.parametrize(
    "report",
    [
        "No pleural effusion or pneumothorax.",
        "No focal consolidation, large pleural effusion, or pneumothorax is identified.",
        "There is no evidence of acute airspace disease, effusion, or pneumothorax.",
        "Lungs are free of infiltrate, mass, or nodule.",
        "Negative for pneumothorax, pleural effusion.",
        "Pneumothorax is not seen.",
        "The heart is not enlarged.",
        "The cardiac silhouette is not significantly enlarged.",
        "Heart size and pulmonary vascular engorgement appear within limits of normal.",
        "The previous effusion has resolved. Interval resolution of the left pneumothorax.",
        "Pericardial effusion.",
        "The evaluation for pneumothorax is limited.",
        "Stable heart size, normal aorta.",
        "Without cardiomegaly.",
    ],
)
def test_denied_findings_are_not_stated(report: str) -> None:
    assert stated_findings(report) == ()


@pytest.mark.parametrize(
    ("report", "stated"),
    [
        ("No pneumothorax. There is a small pleural effusion.", ("pleural effusion",)),
        ("No pneumothorax, but a small effusion is present.", ("pleural effusion",)),
        ("No focal consolidation, the heart is enlarged.", ("cardiomegaly",)),
        ("No effusion, stable cardiomegaly.", ("cardiomegaly",)),
        ("No change in the right lower lobe opacity.", ("airspace opacity",)),
        ("Left effusion without pneumothorax.", ("pleural effusion",)),
        ("No acute pneumonia. Old granuloma. No pneumonia.", ("granuloma",)),
    ],
)
def test_a_denial_ends_where_another_statement_begins(report: str, stated: tuple[str, ...]) -> None:
    assert stated_findings(report) == stated


def test_each_finding_has_a_wording_and_a_heading_to_compare_with() -> None:
    assert set(MESH) == set(FINDINGS) == set(WORDINGS)
    assert all(";" not in name for name in FINDINGS)


@pytest.mark.slow
def test_the_rules_agree_with_the_indexers_of_openi(medtune_data) -> None:
    """The rules were written on reports with even numbers; this is the other half, as docs/evaluation.md gives it."""
    reports = [one for one in read_openi(medtune_data / "openi_reports" / "NLMCXR_reports.tgz") if one.number % 2]
    assert len(reports) == 1920
    both = dict.fromkeys(FINDINGS, 0)
    either = dict.fromkeys(FINDINGS, 0)
    for report in reports:
        stated = set(stated_findings(report.text))
        for name in FINDINGS:
            both[name] += 2 * (name in stated and name in report.findings)
            either[name] += (name in stated) + (name in report.findings)
    f1 = {name: both[name] / either[name] for name in FINDINGS}
    assert round(sum(both.values()) / sum(either.values()), 3) == 0.929
    assert round(sum(f1.values()) / len(f1), 3) == 0.892
    assert f1["cardiomegaly"] > 0.93 and f1["pleural effusion"] > 0.92 and f1["pneumothorax"] > 0.9
    assert min(f1, key=f1.__getitem__) == "pneumonia" and f1["pneumonia"] > 0.6
