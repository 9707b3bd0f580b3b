"""Run the tasks of lmms-eval with a model of ours: VideoMME, MVBench and the rest.

    python recipes/run_lmms_eval.py --model fastslow --tasks videomme --model_args ARGS

ARGS is ``pretrained=runs/qwen2vl_7b/model-1000``, a ``model-N`` folder of a run, whose
settings are used; ``pretrained=NAME,config=FILE`` gives others. All other flags are
lmms-eval's own, which has to be installed beside the recipes.
"""

import sys

try:
    from lmms_eval.__main__ import cli_evaluate  # type: ignore[import-not-found]
    from lmms_eval.models import MODEL_REGISTRY_V2  # type: ignore[import-not-found]
    from lmms_eval.models.registry_v2 import (  # type: ignore[import-not-found]
        ModelManifest,
    )
except ModuleNotFoundError as error:
    if error.name != "lmms_eval":
        raise
    sys.exit(
        'error: lmms-eval is not installed; pip install lmms-eval "filelock<4" comes '
        "first, this project after it (docs/howto/evaluate.md)"
    )

MANIFEST = ModelManifest(
    model_id="fastslow",
    simple_class_path="recipes.edge.evaluation.lmms_eval_model.FastSlow",
)
"""How lmms-eval finds the model."""


def main() -> None:
    """Register the model, and hand over to lmms-eval."""
    MODEL_REGISTRY_V2.register_manifest(MANIFEST)
    cli_evaluate()


if __name__ == "__main__":
    main()
