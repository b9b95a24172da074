"""The recipes and configs of the package: listing them and copying one to edit it.

Descriptions are read from the files as text (a recipe's docstring, a config's header comment). Nothing is imported.
"""

import ast
import difflib
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from medtune.errors import ConfigError

PACKAGE = Path(__file__).parents[1]
SHORT = 96
_SENTENCE_END = re.compile(r"(?<!\bFig)(?<!\bEq)(?<!\.\.)\. ")  # "(Fig. 4)" and "..." go on
COMMANDS = {"serve": "answers OpenAI's chat completions API with a model and its adapters"}
"""Commands of ``medtune`` that read configs of their own, which no recipe reads."""


@dataclass(frozen=True)
class Entry:
    """A recipe or a config.

    Attributes:
        name: ``instfree`` or ``instfree/mini``.
        path: The file.
        header: The recipe's docstring or the config's header comment, without the comment signs.
    """

    name: str
    path: Path
    header: str

    @property
    def is_config(self) -> bool:
        """Whether the entry is a config."""
        return self.path.suffix == ".yaml"

    @property
    def summary(self) -> str:
        """The header's first sentence, on one line."""
        paragraph = " ".join(self.header.strip().split("\n\n")[0].split())
        sentence = _SENTENCE_END.split(paragraph)[0].rstrip(".")
        return sentence if len(sentence) <= SHORT else sentence[: SHORT - 3].rsplit(" ", 1)[0].rstrip("(,;:. ") + "..."

    @property
    def launch(self) -> str:
        """The command that runs it: the first one in the header, else the default command."""
        recipe = self.name.split("/")[0]
        if recipe in COMMANDS:
            return f"medtune {recipe} {self.name}"
        wanted = f"medtune/recipes/{recipe}.py" + (f" --config {self.name}" if self.is_config else "")
        for line in self.header.replace("\\\n", " ").splitlines():
            if "tune run" in line and wanted in line:
                return " ".join(line[line.index("tune run") :].split()).strip("`")
        return f"tune run {wanted}" + ("" if self.is_config else " --config NAME_OR_PATH")


def _comment(path: Path) -> str:
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line[1:].removeprefix(" ").rstrip())
    return "\n".join(lines)


def recipes() -> list[Entry]:
    """Every recipe, by name."""
    entries = []
    for path in sorted((PACKAGE / "recipes").glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        entries.append(Entry(path.stem, path, ast.get_docstring(tree) or ""))
    return entries


def configs() -> list[Entry]:
    """Every config that can be run, by name; files and folders that begin with ``_`` are bases of others."""
    root = PACKAGE / "configs"
    files = sorted(path for path in root.glob("*/*.yaml") if "/_" not in f"/{path.relative_to(root).as_posix()}")
    return [Entry(path.relative_to(root).with_suffix("").as_posix(), path, _comment(path)) for path in files]


def scripts() -> list[Entry]:
    """Every job script for a cluster, by name: ``slurm/train``."""
    root = PACKAGE / "assets"
    return [
        Entry(path.relative_to(root).with_suffix("").as_posix(), path, _comment(path).partition("\n")[2])
        for path in sorted(root.glob("slurm/*.sh"))
    ]


def find(name: str) -> Entry:
    """Return the recipe, config or script of this name; file suffixes and a leading ``medtune/recipes/`` are accepted.

    Raises:
        ConfigError: If there is none, naming the most similar name.
    """
    wanted = name.removeprefix("medtune/").removeprefix("recipes/").removeprefix("configs/")
    wanted = wanted.removesuffix(".py").removesuffix(".yaml").removesuffix(".sh")
    entries = {entry.name: entry for entry in recipes() + configs() + scripts()}
    if wanted in entries:
        return entries[wanted]
    close = difflib.get_close_matches(wanted, entries, n=1)
    hint = f"did you mean {close[0]!r}?" if close else "`medtune ls` lists them."
    raise ConfigError(f"there is no recipe or config named {name!r}: {hint}")


def describe(name: str | None = None) -> str:
    """Return the listing that ``medtune ls`` prints.

    Args:
        name: A recipe, to list only it and its configs, or a config, to print its whole header.
    """
    if name in COMMANDS:
        return _of_command(name)
    if name is not None:
        entry = find(name)
        if entry.path.suffix == ".sh":
            return f"{entry.name}  ({entry.path})\n\n{entry.header}"
        if entry.is_config:
            return f"{entry.name}  ({entry.path})\n\n{entry.header}\n\nall its values: medtune show {entry.name}"
        chosen = [entry]
    else:
        chosen = recipes()
    blocks = []
    for recipe in chosen:
        variants = [config for config in configs() if config.name.startswith(f"{recipe.name}/")]
        lines = [f"{recipe.name}: {recipe.summary}"]
        for config in variants:
            lines += [f"  {config.name}: {config.summary}", f"      {config.launch}"]
        if not variants:
            lines.append(f"      {recipe.launch}")
        blocks.append("\n".join(lines))
    if name is None and blocks:
        blocks += [_of_command(command) for command in COMMANDS]
        blocks.append("\n".join(["slurm: job scripts", *(f"  {one.name}: {one.summary}" for one in scripts())]))
    return "\n\n".join(blocks) or "this installation has no recipes; `medtune doctor` says why"


def _of_command(command: str) -> str:
    own = [config for config in configs() if config.name.startswith(f"{command}/")]
    lines = [line for one in own for line in (f"  {one.name}: {one.summary}", f"      {one.launch}")]
    return "\n".join([f"{command}: {COMMANDS[command]}", *lines])


def copy(name: str, destination: Path, force: bool = False) -> str:
    """Copy a recipe, or a config composed with its bases into one file.

    Args:
        name: See :func:`find`.
        destination: A file, or a folder; in a folder the copy keeps its name.
        force: Whether to overwrite.

    Returns:
        What was written, and the command that uses it.

    Raises:
        ConfigError: If the destination exists or its folder does not.
    """
    entry = find(name)
    target = destination / entry.path.name if destination.is_dir() else destination
    if target.exists() and not force:
        raise ConfigError(f"{target} exists: give another name, or -f to overwrite it")
    if target.exists() and target.samefile(entry.path):
        raise ConfigError(f"{target} is the packaged file itself: give another name")
    if not target.parent.is_dir():
        raise ConfigError(f"the folder {target.parent} does not exist: create it first")
    if entry.is_config:
        from medtune.config.text import show

        target.write_text(show(str(entry.path)), encoding="utf-8")
    else:
        shutil.copyfile(entry.path, target)
    recipe = entry.name.split("/")[0]
    if entry.path.suffix == ".sh":
        return f"wrote {target}\nadapt its #SBATCH lines; its first lines say how it is submitted"
    if recipe in COMMANDS:
        return f"wrote {target}\nrun it: medtune {recipe} {target}"
    if entry.is_config:
        return f"wrote {target}\nrun it: tune run medtune/recipes/{recipe}.py --config {target}"
    return f"wrote {target}\nrun it: tune run {target} --config {recipe}/NAME (from its folder, without a leading ./)"
