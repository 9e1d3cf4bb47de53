"""Names that stand in lmms-eval's results: our model's two, and those of the figures that our tasks report beside their
scores. Imports nothing, so that readers of results need no lmms-eval."""

MODEL_NAME = "llava_textweighted"
# The same class under a name that does not say LLaVA; the family is read off the checkpoint under both.
SECOND_NAME = "vlm_textweighted"
MODEL_NAMES = (MODEL_NAME, SECOND_NAME)
# Metric name -> field of a trace record.
TRACE_METRICS = {
    "kept_image_tokens": "kept_tokens",
    "equivalent_image_tokens": "equivalent_tokens",
    "flops_ratio": "flops_ratio",
    "numeric_rank": "numeric_rank",
    "effective_rank": "effective_rank",
}
MISSING_METRIC = "traces_missing"
