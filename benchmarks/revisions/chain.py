"""The chain's commands on a small demo, for comparing what two revisions make of it.

Each command is run in the side's own directory with relative paths, by its name (`python -m …`)
alone: modules may move between the revisions. Every option that changes bytes is set at least once.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Collection
from pathlib import Path

ID_KEY = "0123456789abcdef0123456789abcdef"
SPACE = {
    "network": ["seed_cnn", "resnet10"],
    "width": [0.125, 0.25],
    "depth": 0.5,
    "fusion": "early",
    "pooling": ["avg", "max"],
    "learning_rate": [1e-4, 1e-3],
    "schedule": "constant",
    "batch_size": 8,
    "augment": "none",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """One thing done to a side's directory, its current directory meanwhile.

    Attributes:
      name: of the step; its output is kept in `logs/<name>.txt`.
      stage: what `--only` selects.
      needs: stages whose outputs it reads.
      command: module and arguments, separated by blanks.
      prepare: makes the command's input, before it is run.
      code: the exit code that the command must have.
    """

    name: str
    stage: str
    needs: tuple[str, ...] = ()
    command: str
    prepare: Callable[[Path], None] | None = None
    code: int = 0


def write_key(side: Path) -> None:
    (side / "id.key").write_text(ID_KEY)


def write_space(side: Path) -> None:
    (side / "space.json").write_text(json.dumps(SPACE))


def write_heap(side: Path) -> None:
    """Some patients' files in one directory, under names that say nothing, a few damaged."""
    heap = side / "heap"
    if heap.exists():
        return
    heap.mkdir()
    files = [path for path in sorted((side / "cohort" / "train").rglob("*.dcm")) if path.is_file()]
    for number, path in enumerate(files[: len(files) // 3]):
        data = path.read_bytes()
        if number % 97 == 5:
            data = data[: len(data) // 2]  # cut within its pixels
        elif number % 97 == 50:
            data = b"no DICOM at all, of no use\n" * 20
        (heap / f"{number:05d}.dcm").write_bytes(data)
        if number % 97 == 70:
            (heap / f"{number:05d}-again.dcm").write_bytes(data)
    (heap / "notes.txt").write_text("not an image\n")


def damage_shards(side: Path) -> None:
    """The dataset's shards without their manifest; one with a flipped byte, one cut short."""
    shutil.copytree(
        side / "dataset",
        side / "damaged",
        ignore=lambda _, names: [name for name in names if not name.endswith(".tfrecord")],
    )
    first, second, *_ = sorted((side / "damaged").glob("*.tfrecord"))
    data = bytearray(first.read_bytes())
    data[len(data) // 3] ^= 0xFF
    first.write_bytes(data)
    second.write_bytes(second.read_bytes()[:-1000])


CONVERT = "beam_jobs.dicom_to_tfrecord --input cohort/train --labels cohort/train_labels.csv"
COHORT = ("phantoms",)
DATASET = ("phantoms", "convert")
RUNS = (*DATASET, "train")
MODELS = (*RUNS, "export")

STEPS = (
    Step(
        name="phantoms",
        stage="phantoms",
        command="beam_jobs.phantoms --output cohort --patients 24 --test_patients 6 --seed 3"
        " --matrix 32,40 --slices 16,20 --workers 1",
    ),
    Step(
        name="phantoms-older",
        stage="phantoms",
        command="beam_jobs.phantoms --output older_cohort --patients 10 --test_patients 0 --seed 4"
        " --matrix 36,48 --slices 14,18 --workers 1",
    ),
    Step(
        name="survey",
        stage="survey",
        needs=COHORT,
        command="beam_jobs.survey cohort/train --output survey.csv",
    ),
    Step(
        name="survey-heap",
        stage="survey",
        needs=COHORT,
        command="beam_jobs.survey heap --modalities T1wCE,T2w --output survey_heap.csv",
        prepare=write_heap,
    ),
    Step(
        name="convert",
        stage="convert",
        needs=COHORT,
        command=f"{CONVERT} --output dataset --shape 32,32,28 --folds 2 --seed 5",
    ),
    Step(
        name="convert-npz",
        stage="convert",
        needs=COHORT,
        command=f"{CONVERT} --output dataset_npz --shape 24,20,16 --folds 3 --dtype float16"
        " --format npz --modalities T1wCE,FLAIR --fov_mm 200,200,120",
    ),
    Step(
        name="convert-hmac",
        stage="convert",
        needs=COHORT,
        command=f"{CONVERT} --output dataset_hmac --shape 24,24,16 --dtype uint16"
        " --patients_per_shard 3 --id_policy hmac --id_key id.key --processes 2",
        prepare=write_key,
    ),
    Step(
        name="convert-heap",
        stage="convert",
        needs=COHORT,
        command="beam_jobs.dicom_to_tfrecord --input heap --output dataset_heap --shape 24,24,16"
        " --modalities T1wCE,T2w --require_modalities T1wCE --strict",
        prepare=write_heap,
        code=8,
    ),
    Step(
        name="convert-older",
        stage="convert",
        needs=COHORT,
        command="beam_jobs.dicom_to_tfrecord --input older_cohort/train --output older --folds 2"
        " --labels older_cohort/train_labels.csv --shape 32,32,28 --no_report",
    ),
    Step(name="verify", stage="verify", needs=DATASET, command="beam_jobs.verify dataset"),
    Step(
        name="report",
        stage="report",
        needs=DATASET,
        command="beam_jobs.report dataset --output report.html",
    ),
    Step(
        name="report-against",
        stage="report",
        needs=DATASET,
        command="beam_jobs.report dataset --against older --output against.html",
    ),
    Step(
        name="baseline",
        stage="baseline",
        needs=DATASET,
        command="trainer.baseline --data dataset --output_dir forest --trees 20 --repeats 2"
        " --seed 1",
    ),
    Step(
        name="baseline-permuted",
        stage="baseline",
        needs=DATASET,
        command="trainer.baseline --data dataset_hmac --output_dir forest_permuted --trees 20"
        " --modalities T2w,FLAIR --permute_labels",
    ),
    Step(
        name="train",
        stage="train",
        needs=DATASET,
        command="trainer.task --data dataset --output_dir run --cross_validate --repeats 2"
        " --seed 1 --model seed_cnn --width 0.125 --epochs 6 --learning_rate 3e-3",
    ),
    Step(
        name="train-slices",
        stage="train",
        needs=DATASET,
        command="trainer.task --data dataset --output_dir run_slices --fold 1 --seed 2 --epochs 2"
        " --model slice_cnn --width 0.25 --head attention --modalities T2w,T1wCE"
        " --augment medium --schedule cosine --warmup_epochs 1 --ema 0.9 --weight_decay 1e-3"
        " --clip_norm 1 --label_smoothing 0.1 --class_weights balanced --cache file",
    ),
    Step(
        name="train-permuted",
        stage="train",
        needs=DATASET,
        command="trainer.task --data dataset_hmac --output_dir run_permuted --fold 0 --epochs 1"
        " --model resnet10 --width 0.0625 --fusion late --pooling max --permute_labels"
        " --augment strong --batch_size 4",
    ),
    Step(
        name="tune",
        stage="tune",
        needs=DATASET,
        command="trainer.tune --data dataset --output_dir study --tuner random --max_trials 2"
        " --epochs 1 --folds 1 --space space.json --seed 1",
        prepare=write_space,
    ),
    Step(
        name="tune-hyperband",
        stage="tune",
        needs=DATASET,
        command="trainer.tune --data dataset --output_dir study_hyperband --tuner hyperband"
        " --max_trials 3 --epochs 3 --folds 1 --space space.json --seed 2",
        prepare=write_space,
    ),
    Step(
        name="evaluate",
        stage="evaluate",
        needs=(*RUNS, "baseline"),
        command="trainer.evaluate --predictions run/oof_predictions.csv"
        " forest/oof_predictions.csv --series dataset/series.csv --output evaluation",
    ),
    Step(
        name="saliency",
        stage="saliency",
        needs=RUNS,
        command="trainer.saliency --run run --data dataset --output saliency",
    ),
    Step(
        name="saliency-gradcam",
        stage="saliency",
        needs=RUNS,
        command="trainer.saliency --run run_slices --data dataset --output saliency_gradcam"
        " --method gradcam",
    ),
    Step(
        name="export",
        stage="export",
        needs=RUNS,
        command="serving.export --runs run --data dataset --output model --calibration temperature",
    ),
    Step(
        name="export-slices",
        stage="export",
        needs=RUNS,
        command="serving.export --runs run_slices --output model_slices"
        " --ensemble probabilities --calibration none",
    ),
    Step(
        name="predict",
        stage="predict",
        needs=MODELS,
        command="serving.batch_predict --model model --input dataset --output predictions.csv"
        " --columns probability,logit,spread,flags",
    ),
    Step(
        name="predict-dicom",
        stage="predict",
        needs=MODELS,
        command="serving.batch_predict --model model --input cohort/test"
        " --ids cohort/sample_submission.csv --output submission.csv",
    ),
    Step(
        name="predict-jsonl",
        stage="predict",
        needs=MODELS,
        command="serving.batch_predict --model model_slices --input heap --output heap.jsonl"
        " --columns probability,logit,flags --output_shards 2 --id_policy hmac --id_key id.key",
    ),
    Step(
        name="predict-damaged",
        stage="predict",
        needs=MODELS,
        command="serving.batch_predict --model model --input damaged/*.tfrecord"
        " --output damaged.parquet --strict",
        prepare=damage_shards,
        code=8,
    ),
    Step(
        name="check",
        stage="check",
        needs=(*MODELS, "predict"),
        command="serving.check_submission submission.csv --sample cohort/sample_submission.csv",
    ),
    Step(
        name="evaluate-submission",
        stage="check",
        needs=(*MODELS, "predict"),
        command="trainer.evaluate --predictions submission.csv"
        " --labels cohort/truth/test_labels.csv --output evaluation_submission",
    ),
)
STAGES = tuple(dict.fromkeys(step.stage for step in STEPS))


def needed(stages: Collection[str]) -> list[Step]:
    """The steps of these stages and of all that they read, in the chain's order."""
    wanted = set(stages)
    for step in STEPS:
        if step.stage in stages:
            wanted |= set(step.needs)
    return [step for step in STEPS if step.stage in wanted]
