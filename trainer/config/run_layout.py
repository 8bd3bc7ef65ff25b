"""Names in a run's directory that several rooms know: those that write a run, and its readers."""

CONFIG_NAME = "config.json"
RUN_NAME = "run.json"
OOF_NAME = "oof_predictions.csv"
OOF_COLUMNS = ("patient_id", "label", "fold", "seed", "logit", "probability")
