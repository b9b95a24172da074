"""The ``medtune`` command: configs and recipes, questions to models, servers, exports and reports.

This module only parses arguments. Each command imports what it needs when it runs, so that ``medtune --help`` is fast.
Training, prediction and evaluation are recipes, launched by ``tune run medtune/recipes/NAME.py --config NAME``.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medtune import __version__
from medtune.cli.annotate import add_annotate
from medtune.errors import ConfigError, MedtuneError
from medtune.trust import trusting

USER_ERROR = 2


def _ls(arguments: argparse.Namespace) -> int:
    from medtune.cli.catalog import describe

    print(describe(arguments.name))
    return 0


def _cp(arguments: argparse.Namespace) -> int:
    from medtune.cli.catalog import copy

    print(copy(arguments.name, arguments.destination, force=arguments.force))
    return 0


def _show(arguments: argparse.Namespace) -> int:
    from medtune.config.text import show

    print(show(arguments.config, arguments.overrides), end="")
    return 0


def _plan(arguments: argparse.Namespace) -> int:
    from medtune.cli.plan_questions import asks_questions, plan_questions
    from medtune.training.plan import plan

    if asks_questions(arguments.config):
        print(plan_questions(arguments.config, arguments.overrides))
        return 0
    result = plan(arguments.config, arguments.overrides, gpus=arguments.gpus, leakage=arguments.leakage)
    print(result.text())
    if result.problems:
        print(f"error: {'; '.join(result.problems)}", file=sys.stderr)
    return USER_ERROR if result.problems else 0


def _doctor(_: argparse.Namespace) -> int:
    from medtune.cli.doctor import examine, render

    findings = examine()
    print(render(findings))
    return 1 if any(finding.status == "FAIL" for finding in findings) else 0


def _export(arguments: argparse.Namespace) -> int:
    from medtune.export import export

    export(
        arguments.source,
        arguments.to,
        arguments.out,
        base=arguments.base,
        force=arguments.force,
        dtype=arguments.dtype,
        model=arguments.model,
        verify=arguments.verify,
        trust=arguments.trust,
    )
    return 0


def _data_sets(given: Sequence[str]) -> dict[str, Path]:
    """Return the folder of each data set, from texts ``NAME=FOLDER``."""
    folders: dict[str, Path] = {}
    for text in given:
        name, separator, folder = text.partition("=")
        if not name or not separator or not folder or name in folders:
            raise ConfigError(f"--data-set {text!r}: write NAME=FOLDER, each name once")
        folders[name] = Path(folder)
    return folders


def _report(arguments: argparse.Namespace) -> int:
    from medtune.data.images import ImageRoot
    from medtune.reporting.averages import write_averages
    from medtune.reporting.report import write_report

    if arguments.questions is not None and arguments.data_set:
        raise ConfigError("--questions shows the questions of one folder: leave --data-set out")
    if arguments.questions is None and bool(arguments.runs) == bool(arguments.data_set):
        raise ConfigError("give the folders of runs, or --data-set NAME=FOLDER for each data set")
    if arguments.data_set:
        if arguments.samples > 0 or arguments.images is not None:
            raise ConfigError("--data-set shows no images: leave --samples and --images out")
        page = write_averages(_data_sets(arguments.data_set), arguments.out, title=arguments.title)
        print(f"report: {page}")
        return 0
    if (arguments.samples > 0) != (arguments.images is not None):
        raise ConfigError("--samples N shows images: give it together with --images FOLDER_OR_TAR")
    extra = []
    if arguments.questions is not None:
        from medtune.reporting.distribution import count_questions, distribution_sections

        extra = distribution_sections(count_questions(arguments.questions))
    root = None if arguments.images is None else ImageRoot(arguments.images)
    opener = None if root is None else lambda path: root.load(path, "report")
    page = write_report(
        arguments.runs,
        arguments.out,
        title=arguments.title,
        samples=arguments.samples,
        open_image=opener,
        extra=extra,
    )
    print(f"report: {page}")
    return 0


def _ask(arguments: argparse.Namespace) -> int:
    from medtune.cli.ask import run

    return run(arguments)


def _serve(arguments: argparse.Namespace) -> int:
    try:
        from medtune.serving.run import run
    except ModuleNotFoundError as error:
        if str(error.name).startswith("medtune"):
            raise
        raise ConfigError(f"serving needs the package {error.name}: pip install 'medtune[serve]'") from None
    return run(arguments)


def _annotate(arguments: argparse.Namespace) -> int:
    try:
        from medtune.annotate.run import run
    except ModuleNotFoundError as error:
        if str(error.name).startswith("medtune"):
            raise
        raise ConfigError(f"the page needs the package {error.name}: pip install 'medtune[annotate]'") from None
    return run(arguments)


def _add_report_arguments(report: argparse.ArgumentParser) -> None:
    report.add_argument(
        "runs",
        nargs="*",
        type=Path,
        help="folders of runs: evaluated ones, training runs, whose curves are drawn, or those of a judge",
    )
    report.add_argument(
        "--data-set",
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="in place of runs, twice or more: a sweep or a run on that data set; the page has the mean over data sets",
    )
    report.add_argument(
        "--questions",
        type=Path,
        metavar="FOLDER",
        help="a folder of questions in FLARE's layout: modalities and tasks by split, alone or with runs",
    )
    report.add_argument("--out", type=Path, default=Path("report/report.html"), help="default: report/report.html")
    report.add_argument("--title", default="medtune report", help="heading of the page")
    report.add_argument("--samples", type=int, default=0, metavar="N", help="show N questions with image and answers")
    report.add_argument("--images", type=Path, metavar="ROOT", help="folder or .tar that the images are read from")


def _add_ask_arguments(ask: argparse.ArgumentParser) -> None:
    ask.description = (
        "Ask a model one question about images, or hold a conversation about them on the terminal: without a question, "
        "questions are read from standard input. The answers alone go to standard output."
    )
    ask.add_argument(
        "model",
        metavar="MODEL",
        help="a training run's folder, an exported folder (opened by transformers), a server's address ending in /v1, "
        "or a predict config such as predict/mini",
    )
    ask.add_argument("rest", nargs="*", metavar="IMAGE.. QUESTION", help="image files, then the question")
    ask.add_argument("--max-new-tokens", type=int, default=256, metavar="N", help="longest answer (default: 256)")
    ask.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0, the default, is greedy")
    ask.add_argument("--seed", type=int, default=0, help="seed of the sampling (default: 0)")
    ask.add_argument("--system", default="", metavar="TEXT", help="system prompt")
    ask.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="default: auto")
    ask.add_argument("--model-name", metavar="NAME", help="the model of a server")
    ask.add_argument("--api-key-env", metavar="VARIABLE", help="environment variable that holds a server's key")


class _Parser(argparse.ArgumentParser):
    """Takes ``key=value`` also after options; argparse alone would call it unrecognized there."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, and add what is left over to the overrides."""
        found, rest = self.parse_known_args(args, namespace)
        late = [word for word in rest if hasattr(found, "overrides") and not word.startswith("-") and "=" in word]
        if len(late) < len(rest):
            self.error(f"unrecognized arguments: {' '.join(word for word in rest if word not in late)}")
        if late:
            found.overrides = [*found.overrides, *late]
        return found


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    root = _Parser(
        prog="medtune",
        description="Post-training of vision-language models on medical images.",
        epilog="Recipes are launched with: tune run medtune/recipes/NAME.py --config NAME_OR_PATH [key=value ...]",
    )
    root.add_argument("--version", action="version", version=f"medtune {__version__}")
    commands = root.add_subparsers(title="commands", dest="command", required=True, metavar="COMMAND")

    ls = commands.add_parser("ls", help="list the recipes and configs, each with its launch line")
    ls.add_argument("name", nargs="?", help="only this recipe, or one config with its whole header")
    ls.set_defaults(run=_ls)

    cp = commands.add_parser("cp", help="copy a recipe, or a config with all its values, here to edit it")
    cp.add_argument("name", help="a recipe (instfree), a config (instfree/mini) or a job script (slurm/train)")
    cp.add_argument("destination", nargs="?", type=Path, default=Path("."), help="file or folder (default: here)")
    cp.add_argument("-f", "--force", action="store_true", help="overwrite the destination")
    cp.set_defaults(run=_cp)

    show = commands.add_parser("show", help="print a config composed with its bases, and where each block comes from")
    show.add_argument("config", help="a packaged config (instfree/mini) or a path")
    show.add_argument("overrides", nargs="*", help="key=value, as for the recipe")
    show.set_defaults(run=_show)

    plan = commands.add_parser(
        "plan", help="show what a config would do: parts, data, memory per GPU; queries of a predict config"
    )
    plan.add_argument("config", help="a packaged config (instfree/mini) or a path")
    plan.add_argument("overrides", nargs="*", help="key=value, as for the recipe")
    plan.add_argument("--gpus", type=int, help="processes to plan for (default: what the config's launch line says)")
    plan.add_argument(
        "--leakage", type=Path, metavar="FILE", help="compare all images of training and validation and list overlaps"
    )
    _add_trust(plan)
    plan.set_defaults(run=_plan)

    doctor = commands.add_parser("doctor", help="check versions, devices, disk and data, and print what fixes them")
    doctor.set_defaults(run=_doctor)

    ask = commands.add_parser("ask", help="ask a model one question about images, or hold a conversation")
    _add_ask_arguments(ask)
    _add_trust(ask)
    ask.set_defaults(run=_ask)

    _add_serve(commands)
    add_annotate(commands).set_defaults(run=_annotate)
    _add_export(commands)

    report = commands.add_parser(
        "report", help="write one self-contained HTML page of runs: results, and curves of training"
    )
    _add_report_arguments(report)
    _add_trust(report)
    report.set_defaults(run=_report)
    return root


def _add_serve(commands: Any) -> None:
    serve = commands.add_parser(
        "serve",
        help="answer OpenAI's chat completions API with a model and its adapters",
        description="Answers OpenAI's chat completions API, with images and streaming. Requests enter and leave the "
        "batch between two decoding steps; each names an adapter as its model, or is routed.",
        epilog="Keys: adapters.NAME=FOLDER, router=FOLDER, host, port, api_key_env, slots, max_new_tokens, limits.KEY "
        "and others; `medtune show serve/mini` prints them. Stop with Ctrl-C or SIGTERM: running requests end first.",
    )
    serve.add_argument(
        "source", help="a serve config (serve/mini), a run's folder, an exported folder, or a predict config"
    )
    serve.add_argument("overrides", nargs="*", metavar="key=value", help="changes of the config")
    serve.add_argument(
        "--upstream", metavar="URL", help="route questions to the adapters of a vLLM server in place of an engine here"
    )
    serve.add_argument("--dry-run", action="store_true", help="print what would be served and its memory, and end")
    _add_trust(serve)
    serve.set_defaults(run=_serve)


def _add_export(commands: Any) -> None:
    export = commands.add_parser("export", help="write a run's weights: merged, or as a PEFT adapter")
    export.add_argument("source", type=Path, metavar="SOURCE", help="output_dir of a run, its step_N, or a plain model")
    export.add_argument("--to", required=True, choices=("hf", "peft", "torchtune"), help="what is written")
    export.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    export.add_argument(
        "--base", metavar="DIR", help="base weights, if the path in the run's config is no longer valid"
    )
    export.add_argument(
        "--model", metavar="BUILDER", help="builder of a plain model, if its config.json does not tell which"
    )
    export.add_argument("--dtype", choices=("fp32", "bf16"), help="type of the written tensors (default: the run's)")
    export.add_argument("-f", "--force", action="store_true", help="replace an earlier export")
    export.add_argument(
        "--verify", action="store_true", help="open the folder in transformers and compare its answers token for token"
    )
    _add_trust(export)
    export.set_defaults(run=_export)


def _add_trust(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--trust",
        action="append",
        default=[],
        metavar="MODULE",
        help="also call components of this module (default: torch, torchtune, torchao, bitsandbytes and medtune)",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The arguments after the command's name; default: those of the process.

    Returns:
        The exit status: 0, 1 when ``doctor`` found something broken, 2 for an error that the user can fix.
    """
    arguments = parser().parse_args(argv)
    try:
        with trusting(getattr(arguments, "trust", ())):
            return arguments.run(arguments)
    except MedtuneError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    except BrokenPipeError:  # `medtune ls | head`
        sys.stderr.close()
        return 0


if __name__ == "__main__":
    sys.exit(main())
