"""The prompts that lmms-eval's own tasks have for its model `qwen3_vl`, each read off the task's own file."""

from lmms_textweighted.harness.prompts_of import prompts_of

MMMU_VAL = prompts_of("qwen3_vl", "mmmu/mmmu_val.yaml")
MMMU_PRO_STANDARD = prompts_of("qwen3_vl", "mmmu_pro/mmmu_pro_standard.yaml")
MMMU_PRO_VISION = prompts_of("qwen3_vl", "mmmu_pro/mmmu_pro_vision.yaml")
MMSTAR = prompts_of("qwen3_vl", "mmstar/mmstar.yaml")
SIMPLEVQA = prompts_of("qwen3_vl", "simplevqa/simplevqa.yaml")
