"""The API reference: one HTML page for each public module, made from the docstrings by pdoc. ``make docs`` calls it.

    python docs/api.py [FOLDER]    # build/docs unless said otherwise

Needs no network, and neither do the pages.
"""

import html
import importlib
import pkgutil
import re
import sys
import warnings
from pathlib import Path

import medtune
from medtune import __version__

OUT = Path(__file__).resolve().parent.parent / "build" / "docs"


def modules() -> list[str]:
    """Public modules and packages by name; what a package keeps in ``_files`` it shows under its own name."""
    found = ["medtune", *(module.name for module in pkgutil.walk_packages(medtune.__path__, "medtune."))]
    recipes = Path(medtune.__path__[0]) / "recipes"  # no package on purpose, so that no walk finds it
    found += [f"medtune.recipes.{path.stem}" for path in sorted(recipes.glob("*.py"))]
    return [name for name in found if not any(part.startswith("_") for part in name.split("."))]


def index(names: list[str]) -> str:
    """The first page: every module with the first line of its docstring."""
    rows = [
        f'<tr><td><a href="{name.replace(".", "/")}.html">{name}</a></td><td>{html.escape(_first_line(name))}</td></tr>'
        for name in names
    ]
    style = "body{font-family:sans-serif;margin:2em;max-width:75em}td{padding:.15em 1em .15em 0;vertical-align:top}"
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>medtune</title><style>{style}</style>'
    return f"{head}<h1>medtune {__version__}: API reference</h1><table>{''.join(rows)}</table></html>\n"


def _first_line(name: str) -> str:
    line = (sys.modules[name].__doc__ or "").strip().partition("\n")[0]
    return re.sub(r"(?::\w+:)?`+([^`]+)`+", r"\1", line)  # roles and code as plain words


def write(out: Path) -> list[str]:
    """Write the pages into ``out``; returns what pdoc had to complain of."""
    import pdoc

    names = modules()
    for name in names:  # beforehand, so that warnings of other packages are not mistaken for pdoc's
        importlib.import_module(name)
    pdoc.render.configure(docformat="google", show_source=False, footer_text=f"medtune {__version__}")
    # One by one, since a package's __all__ hides its modules from pdoc's own walk and from its lists.
    with warnings.catch_warnings(record=True) as complaints:
        warnings.simplefilter("always", UserWarning)
        pages = {name: pdoc.doc.Module(sys.modules[name]) for name in names}
        for name, module in pages.items():
            path = out / f"{name.replace('.', '/')}.html"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(pdoc.render.html_module(module, pages), encoding="utf-8")
        (out / "index.html").write_text(index(names), encoding="utf-8")
        (out / "search.js").write_text(pdoc.render.search_index(pages), encoding="utf-8")
    return [str(one.message) for one in complaints]


def main(arguments: list[str]) -> int:
    """Write the pages, and fail where a docstring or an annotation cannot be read."""
    out = Path(arguments[0]) if arguments else OUT
    complaints = write(out)
    for text in complaints:
        print(f"warning: {text}", file=sys.stderr)
    print(f"API reference: {out / 'index.html'}")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
