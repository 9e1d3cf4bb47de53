"""What a run took in all, for lmms-eval's throughput summary."""

from __future__ import annotations

import time

from lmms_eval.models.model_utils.gen_metrics import log_metrics

from lmms_textweighted.engine.plan import Plan
from lmms_textweighted.inference import Answer

_FIGURES = ("kept_tokens", "kept_ratio", "equivalent_tokens", "flops_ratio", "selection_flops_ratio", "kv_ratio")


class Summary:
    """Totals of a run, for lmms-eval's throughput summary."""

    def __init__(self) -> None:
        self.count, self.tokens, self.seconds = 0, 0, 0.0
        self.sums = dict.fromkeys(_FIGURES, 0.0)
        self.waits: dict[str, list[float]] = {"ttft": [], "tpot": [], "e2e": [], "prefill": [], "selection": []}
        self.began = time.perf_counter()

    def add(self, answer: Answer, seconds: float) -> None:
        self.count += 1
        self.tokens += answer.output_tokens
        self.seconds += seconds
        for name in self.sums:
            self.sums[name] += getattr(answer.trace, name)
        took = answer.timing
        self.waits["ttft"].append(took.encode + took.prefill)
        self.waits["prefill"].append(took.prefill)
        self.waits["selection"].append(answer.trace.selection_seconds)
        self.waits["e2e"].append(took.encode + took.prefill + took.decode)
        if took.steps:
            self.waits["tpot"].append(took.decode / took.steps)

    def log(self, plan: Plan, processes: int) -> None:
        """Hand the means to lmms-eval, which takes numbers only: of the settings, the pruning layer.

        ttft, tpot, e2e: seconds to the first token, for each further one, and in all, as a request of a batch waits.
        prefill, selection: those of the model alone in ttft, and the selection's part of them.
        answering_seconds: from the first request to the last answer, pictures and the caller's own work included. Of
        several processes each logs its own share's figures; lmms-eval's results file holds those of rank 0.
        """
        numbers: dict[str, float] = {"pruning_layer": plan.stages[0].layer} if plan.stages else {}
        numbers["processes"] = processes
        numbers["answering_seconds"] = time.perf_counter() - self.began
        if self.count:
            means = {name: value / self.count for name, value in self.sums.items()}
            means.update({name: sum(values) / len(values) for name, values in self.waits.items() if values})
            log_metrics(
                total_elapsed_time=self.seconds,
                total_gen_tokens=self.tokens,
                avg_speed=self.tokens / self.seconds,
                additional_metrics={"total_requests": self.count, **means, **numbers},
            )
