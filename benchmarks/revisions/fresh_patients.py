"""Trains runs with the revision on PYTHONPATH and prints the AUCs of their ensembles elsewhere.

    python fresh_patients.py '{"cohorts": [...], "fresh": "...", "seeds": 4, "config": {...},
                               "work": "..."}'

The last line is a JSON list: one AUC a run, cohort by cohort, seed by seed.
"""

from __future__ import annotations

import contextlib
import json
import sys

import numpy as np
from sklearn.metrics import roc_auc_score

from trainer.api import open_records, train


def main() -> None:
    request = json.loads(sys.argv[1])
    with open_records(request["fresh"]) as fresh:
        batches = [
            (batch["volume"], batch["label"]) for batch in fresh.evaluation_batches(batch_size=50)
        ]
    labels = np.concatenate([np.ravel(label) for _, label in batches])
    found: list[float] = []
    for cohort in request["cohorts"]:
        for seed in range(request["seeds"]):
            config = {**request["config"], "seed": seed}
            place = f"{request['work']}/{len(found)}"
            with contextlib.redirect_stdout(sys.stderr):
                trained = train(cohort, place, config)
            assert trained is not None
            members = [trained.load_member(at) for at in range(len(trained.members))]
            logits = np.mean(
                [
                    np.concatenate([np.ravel(member(volume)) for volume, _ in batches])
                    for member in members
                ],
                axis=0,
            )
            found.append(float(roc_auc_score(labels, logits)))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
