"""``medtune doctor``: compares the installation with the tested versions and prints the command for each mismatch."""

import hashlib
import importlib
import importlib.metadata
import shutil
import sys
from base64 import urlsafe_b64encode
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

PACKAGE = Path(__file__).parents[1]
Status = Literal["ok", "warn", "FAIL"]
Version = tuple[int, ...]

# package: (lowest version, first version that is too new, the version to install, required).
# torchtune 0.6.1 imports names that torchao 0.16 removed. FSDP2 on the gloo backend, which the tests of several
# processes use, works from torch 2.9 on.
TESTED: dict[str, tuple[Version, Version, str, bool]] = {
    "torch": ((2, 9), (2, 12), "2.11.0", True),
    "torchvision": ((0, 24), (0, 27), "0.26.0", True),
    "torchao": ((0, 14), (0, 16), "0.15.0", True),
    "torchtune": ((0, 6, 1), (0, 6, 2), "0.6.1", True),
    "bitsandbytes": ((0, 49), (1,), "0.50.2", True),
    "numpy": ((2, 1), (3,), "2.4.6", True),
    "pandas": ((2, 2), (4,), "3.1.1", True),
    "pillow": ((11,), (14,), "13.0.0", True),
    "timm": ((1, 0, 20), (2,), "1.0.31", True),
    "transformers": ((5, 23), (5, 24), "5.23.0", False),
}
# torchvision's operators are compiled for one minor version of torch.
TORCHVISION_OF: dict[Version, Version] = {(2, 9): (0, 24), (2, 10): (0, 25), (2, 11): (0, 26)}
WEIGHTS_GB = 25
GB = 1e9


@dataclass(frozen=True)
class Finding:
    """One line of the output.

    Attributes:
        status: ``ok``, ``warn`` (it runs with limits) or ``FAIL`` (it does not run).
        subject: What was checked.
        detail: The outcome.
        mend: The command or action that fixes it.
    """

    status: Status
    subject: str
    detail: str
    mend: str = ""


def version_tuple(version: str) -> Version:
    """Return the leading numbers of a version: ``2.11.0+cu130`` is ``(2, 11, 0)``."""
    numbers = []
    for piece in version.split("+")[0].split("."):
        digits = "".join(c for c in piece if c.isdigit()) if piece[:1].isdigit() else ""
        if not digits:
            break
        numbers.append(int(digits))
    return tuple(numbers)


def installed(package: str) -> str | None:
    """Return the installed version, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def check_python(version: Version = sys.version_info[:3]) -> Finding:
    """Check for Python 3.11 to 3.13."""
    text = ".".join(map(str, version))
    if (3, 11) <= version[:2] < (3, 14):
        return Finding("ok", "python", text)
    return Finding("FAIL", "python", f"{text}; tested: 3.11 to 3.13", "rm -rf .venv && make install PYTHON=python3.11")


def check_package(package: str, find: Callable[[str], str | None] = installed) -> Finding:
    """Compare a package's version with the tested range."""
    low, high, pinned, needed = TESTED[package]
    version = find(package)
    mend = f'pip install "{package}=={pinned}"'
    tested = f"tested: >={'.'.join(map(str, low))},<{'.'.join(map(str, high))}"
    if version is None:
        detail = f"not installed; {tested}" + ("" if needed else " (of some extras)")
        return Finding("FAIL" if needed else "ok", package, detail, mend if needed else "")
    if low <= version_tuple(version) < high:
        return Finding("ok", package, version)
    return Finding("FAIL" if needed else "warn", package, f"{version}; {tested}", mend)


def check_pair(find: Callable[[str], str | None] = installed) -> Finding:
    """Check that torchvision was built for the installed torch."""
    torch, vision = find("torch"), find("torchvision")
    if torch is None or vision is None:
        return Finding("warn", "torch + torchvision", "one of them is missing")
    wanted = TORCHVISION_OF.get(version_tuple(torch)[:2])
    if wanted is None or version_tuple(vision)[:2] == wanted:
        return Finding("ok", "torch + torchvision", f"{torch} with {vision}")
    name = ".".join(map(str, wanted))
    detail = f"torchvision {vision} was not built for torch {torch}: its operators will be missing"
    return Finding("FAIL", "torch + torchvision", detail, f'pip install "torchvision=={name}.*"')


def check_import(module: str) -> Finding:
    """Check that a module can be imported."""
    try:
        importlib.import_module(module)
    except Exception as error:
        pinned = TESTED[module.split(".")[0]][2]
        mend = f'pip install --force-reinstall "{module.split(".")[0]}=={pinned}"'
        return Finding("FAIL", f"import {module}", f"{type(error).__name__}: {error}".splitlines()[0], mend)
    return Finding("ok", f"import {module}", "works")


def check_torchtune_recipes() -> Finding:
    """Check that torchtune's top-level package ``recipes`` is unchanged since its wheel installed it.

    Another project's wheel with a package of that name overwrites it silently, and uninstalling that wheel deletes it.
    `tune run` of a torchtune recipe then fails.
    """
    subject, mend = "torchtune's recipes", "pip install --force-reinstall --no-deps torchtune==0.6.1"
    try:
        files = importlib.metadata.distribution("torchtune").files or []
    except importlib.metadata.PackageNotFoundError:
        return Finding("FAIL", subject, "torchtune is not installed", mend)
    for file in files:
        if file.parts[0] != "recipes" or file.hash is None:
            continue
        path = Path(str(file.locate()))
        if not path.is_file():
            return Finding("FAIL", subject, f"{file} was deleted by another package", mend)
        digest = urlsafe_b64encode(hashlib.new(file.hash.mode, path.read_bytes()).digest()).rstrip(b"=").decode()
        if digest != file.hash.value:
            return Finding("FAIL", subject, f"{file} was overwritten by another package", mend)
    return Finding("ok", subject, "as installed")


def check_packaged_files() -> Finding:
    """Check that the package contains the recipes and configs (in a checkout they are two symlinks)."""
    missing = [name for name in ("recipes", "configs") if not (PACKAGE / name).is_dir()]
    if not missing:
        return Finding("ok", "medtune's recipes and configs", str(PACKAGE))
    links = " && ".join(f"ln -sfn ../{name} {PACKAGE / name}" for name in missing)
    return Finding("FAIL", "medtune's recipes and configs", f"{', '.join(missing)} missing in {PACKAGE}", links)


def check_devices() -> list[Finding]:
    """List the CUDA devices that torch finds, or the reason why it finds none."""
    try:
        import torch
    except Exception as error:
        return [Finding("FAIL", "devices", f"torch does not import: {error}".splitlines()[0])]
    if not torch.cuda.is_available():
        if shutil.which("nvidia-smi"):
            detail = f"a driver is here, but torch {torch.__version__} (CUDA {torch.version.cuda}) finds no GPU"
            return [Finding("warn", "devices", detail, "update the NVIDIA driver, or install a torch built for it")]
        return [Finding("ok", "devices", "CPU only: enough for `make demo`; the 11B needs an 80 GB GPU")]
    findings = []
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        text = f"{card.name}, {card.total_memory / GB:.0f} GB, capability {card.major}.{card.minor}"
        text += f", CUDA {torch.version.cuda}"
        if card.major < 8:
            findings.append(Finding("warn", f"cuda:{index}", f"{text}: no bf16", "set dtype=fp32 in configs"))
        else:
            findings.append(Finding("ok", f"cuda:{index}", text))
    return findings


def check_disk(folder: Path = Path(".")) -> Finding:
    """Check the disk space for the weights of an 11B model and one checkpoint of its trained parts."""
    free = shutil.disk_usage(folder).free / GB
    text = f"{free:.0f} GB free in {folder.resolve()}"
    if free >= 2 * WEIGHTS_GB:
        return Finding("ok", "disk", text)
    return Finding("warn", "disk", f"{text}; an 11B's weights take {WEIGHTS_GB} GB, and its checkpoints as much again")


def check_data() -> Finding:
    """Check the folder of real data sets."""
    from medtune.config import data_root

    folder = data_root()
    if folder is None:
        return Finding("ok", "data", "none (MEDTUNE_DATA is not set); the demo brings its own")
    if folder.is_dir():
        sets = sorted(item.name for item in folder.iterdir() if item.is_dir())
        return Finding("ok", "data", f"{folder}: {', '.join(sets) or 'empty'}")
    return Finding("FAIL", "data", f"MEDTUNE_DATA={folder} is not a folder", "export MEDTUNE_DATA=/path/to/data")


def examine() -> list[Finding]:
    """Run every check, in the order of the output."""
    findings = [check_python(), *(check_package(package) for package in TESTED), check_pair()]
    findings += [check_import(module) for module in ("torch", "torchvision", "torchtune") if installed(module)]
    findings += [check_torchtune_recipes(), check_packaged_files(), *check_devices(), check_disk(), check_data()]
    return findings


def render(findings: list[Finding]) -> str:
    """Return the findings as lines; the last line says whether the installation will work."""
    width = max(len(finding.subject) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{finding.status:>4}  {finding.subject:<{width}}  {finding.detail}")
        if finding.mend and finding.status != "ok":
            lines.append(f"      {'':<{width}}  fix: {finding.mend}")
    broken = sum(finding.status == "FAIL" for finding in findings)
    lines.append(f"{broken} to fix" if broken else "this installation is one that was tested")
    return "\n".join(lines)
