"""Model code for transformers in an export, of families that it does not have."""

import pathlib
import shutil
from typing import Any

from lsrjax.models.backbones.backbone import Backbone

TEMPLATES = pathlib.Path(__file__).parents[1] / "templates"


def write_code(folder: pathlib.Path, family: Backbone) -> dict[str, Any]:
    """Writes a family's model code, if transformers does not have it.

    Returns:
      The keys of config.json that name it.
    """
    if not family.code:
        return {}
    configuration, modeling = f"configuration_{family.code}", f"modeling_{family.code}"
    for name in (configuration, modeling):
        shutil.copyfile(TEMPLATES / f"{name}.py", folder / f"{name}.py")
    stem = family.transformers
    classes = {
        "AutoConfig": f"{configuration}.{stem}Config",
        "AutoModel": f"{modeling}.{stem}Model",
        "AutoModelForMaskedLM": f"{modeling}.{stem}ForMaskedLM",
    }
    return {"auto_map": classes}
