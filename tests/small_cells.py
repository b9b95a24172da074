"""A few of the packaged white blood cells, prepared for a sweep."""

from pathlib import Path

from medtune.config import PACKAGE
from medtune.sweep.run import run_recipe


def small_cells(folder: Path, train: int) -> list[str]:
    """Prepare ``train`` reports and one question of each attribute in ``folder``, which exists.

    Returns:
        Overrides of a sweep's config that use them and write into ``folder``.
    """
    asset, prepared = PACKAGE / "assets" / "demo_wbcatt", folder / "prepared"
    where = [f"data.annotations={asset}", f"image_root={asset / 'images.tar'}", f"output_dir={prepared}"]
    limits = [f"data.limit_train={train}", "data.limit_questions_per_attribute=1"]
    run_recipe(folder, "prepare", ["prepare/wbcatt", *where, *limits])
    return [f"output_dir={folder}", f"prepared_dir={prepared}", f"image_root={asset / 'images.tar'}", "center_crop=1.0"]
