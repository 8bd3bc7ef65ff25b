"""Where things lie in a run's directory: the names that writers and readers of runs share.

run/
  config.json            what was requested, of which dataset; written first
  run.json               the contract (`trainer.training.run_files.Run`); written last
  oof_predictions.csv    patient_id, label, fold, seed, logit, probability: out of fold only
  report.html            what they are worth, for people; metrics.json is the same in numbers
  fold-0/best.keras      the member: weights of the epoch with the best validation AUC
  fold-0/last.keras      the last epoch's
  fold-0/history.csv     one row an epoch
  fold-0/result.json     what the fold gave; written last, so that it marks a fold that is done
  fold-0/state.npz       what a restart resumes from; gone when the fold is done
  logs/fold-0/           TensorBoard scalars and pictures

With --repeats the members are fold-0-seed-0/, fold-0-seed-1/, ...
"""

CONFIG_NAME = "config.json"
RUN_NAME = "run.json"
REPORT_NAME = "report.html"
OOF_NAME = "oof_predictions.csv"
OOF_COLUMNS = ("patient_id", "label", "fold", "seed", "logit", "probability")
BEST_NETWORK_NAME = "best.keras"
LAST_NETWORK_NAME = "last.keras"
HISTORY_NAME = "history.csv"
FOLD_RESULT_NAME = "result.json"
FOLD_STATE_NAME = "state.npz"
