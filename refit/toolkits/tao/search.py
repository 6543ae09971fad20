"""The search of a TAO pipeline for a size: one pod prunes to one size after another, retrains each shortly and
evaluates it (`refit.tao.climb`). The pruned model that is chosen is the output of `prune`, and the full retraining
begins with it.

All commands are the pipeline's own with other values, as of the INT8 ladder (`ladder`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from refit.toolkits.base import Stage
from refit.toolkits.smoke import changed
from refit.toolkits.tao.ladder import request, trying
from refit.toolkits.tao.scope import Work

if TYPE_CHECKING:
    from refit.toolkits.tao.chain import TaoChain

PLACEHOLDER = "REFIT_THRESHOLD"  # a word that YAML needs no quotes for: a number takes its place


def searches(chain: TaoChain, plain: Stage, trained: str) -> Stage:
    """The stage `plain`, which prunes by one threshold, as one that searches; `trained` made what it prunes."""
    params, gate = chain.p.stages.prune, chain.p.gates.quality
    assert params is not None
    assert params.search is not None
    wish = params.search
    once = {"epochs": wish.epochs, "evaluate_every": wish.epochs, "checkpoint_every": wish.epochs}
    changes = {"stages.prune.threshold": PLACEHOLDER, **{f"stages.retrain.{n}": v for n, v in once.items()}}
    short = type(chain)(changed(chain.p, changes), chain.profile, chain.dataset)
    prune = short.command(Work("prune", "prune", trained, trained))
    retrain = short.command(Work("retrain", "train", "retrain", "prune"))
    evaluate = short.command(Work("evaluate", "evaluate", "retrain", "retrain"))
    secrets = tuple(dict.fromkeys(name for stage in (prune, retrain, evaluate) for name in stage.secrets))

    def told() -> dict[str, Any]:
        judged = {name: {k: v for k, v in m.items() if k != "most"} for name, m in (prune.metrics or {}).items()}
        return {
            "metric": gate.metric,
            "limits": {"max_drop": wish.max_drop, "max_drop_class": None, "floor": None},
            "placeholder": PLACEHOLDER,
            "threshold": params.threshold,
            "ratio": wish.ratio,
            "tries": wish.tries,
            "max_kept": params.max_kept,
            "requests": {
                "prune": request(replace(prune, metrics=judged)),  # that hardly anything went is no fault of a step
                "retrain": request(retrain),
                "evaluate": request(evaluate),
            },
        }

    made = trying(replace(plain, secrets=secrets), "search", told, ("prune", "retrain"), "evaluate_trained", (plain,))
    return replace(
        made,
        title="Search for the size to prune to",
        resources=retrain.resources,
        metrics={
            "kept": {"file": "search.json", "key": "kept", "most": params.max_kept},
            "parameters": {"file": "search.json", "key": "parameters"},
        },
    )
