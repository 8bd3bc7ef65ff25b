"""Where things lie in a run's directory: the names that writers and readers of runs share.

run/
  config.json            what was requested, of which dataset; written first
  run.json               the contract (`trainer.training.run_files.Run`); written last
  oof_predictions.csv    `OOF_COLUMNS`, out of fold only; how the epoch was chosen, and by which
                         reasons no claim can be made of the scores, stand in every row
  report.html            what they are worth, for people; metrics.json is the same in numbers
  fold-0/network.keras   the member
  fold-0/.epoch-7.keras  an epoch that may become it; gone when the run is done
  fold-0/history.csv     one row an epoch
  fold-0/result.json     what the fold gave; written last, so that it marks a fold that is done
  fold-0/state.npz       what a restart resumes from; gone when the fold is done
  permutations.csv       with --permutations: permutation, seed, auc of each finished retraining
  permutations/          the same, a file each, and retrainings that are not finished
  logs/fold-0/           TensorBoard scalars and pictures

With --repeats the members are fold-0-seed-0/, fold-0-seed-1/, ...
"""

CONFIG_NAME = "config.json"
RUN_NAME = "run.json"
PERMUTATIONS = "permutations"
REPORT_NAME = "report.html"
OOF_NAME = "oof_predictions.csv"
OOF_COLUMNS = ("patient_id", "label", "fold", "seed", "logit", "probability") + (
    "epoch",
    "epoch_choice",
    "no_claim",
)
PERMUTATIONS_NAME = "permutations.csv"
NETWORK_NAME = "network.keras"
HISTORY_NAME = "history.csv"
FOLD_RESULT_NAME = "result.json"
FOLD_STATE_NAME = "state.npz"
