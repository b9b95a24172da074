"""Reading of a trained task router, whatever its kind."""

import json
from pathlib import Path

from medtune.data.opening import refuse_special
from medtune.errors import ModelError
from medtune.routing.routes import TaskRouter

GLICLASS, TFIDF = "GLiClass", "medtune_tfidf_router"


def load_router(folder: str | Path) -> TaskRouter:
    """Read a trained task router.

    Args:
        folder: the ``weights`` folder of a ``task_router`` run, or that of a ``tfidf_router`` run; the folder of the
            run itself, which holds it, is accepted too.

    Raises:
        ModelError: if the folder holds no router, or one that is damaged.
    """
    folder = Path(folder).expanduser()
    if not (folder / "config.json").is_file() and (folder / "weights" / "config.json").is_file():
        folder = folder / "weights"
    file = folder / "config.json"
    refuse_special(file, ModelError)
    try:
        kind = json.loads(file.read_text(encoding="utf-8"))["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = "no model_type" if isinstance(error, KeyError) else error
        raise ModelError(f"{folder} holds no task router ({what}); name the weights folder of a router") from error
    if kind == TFIDF:
        from medtune.routing.tfidf import TfidfRouter

        return TfidfRouter.load(folder)
    if kind == GLICLASS:
        from medtune.routing.gliclass_router import GLiClassRouter

        return GLiClassRouter.load(folder)
    raise ModelError(f"{folder} holds a model of type {kind!r}, which is no task router; known are {GLICLASS}, {TFIDF}")
