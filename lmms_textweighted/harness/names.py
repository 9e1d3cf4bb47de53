"""Names that stand in lmms-eval's results: our model's, and those of the figures that our tasks report beside their
scores. Imports nothing, so that readers of results need no lmms-eval."""

MODEL_NAME = "llava_textweighted"
# Metric name -> field of a trace record.
TRACE_METRICS = {
    "kept_image_tokens": "kept_tokens",
    "equivalent_image_tokens": "equivalent_tokens",
    "flops_ratio": "flops_ratio",
    "numeric_rank": "numeric_rank",
    "effective_rank": "effective_rank",
}
MISSING_METRIC = "traces_missing"
