"""Export: one SavedModel that answers as its members do, whole or not at all."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tensorflow as tf

from beam_jobs.common.cli import UsageError
from beam_jobs.common.contract_json import ContractError
from beam_jobs.core.example import encode_case
from beam_jobs.core.record import PreparedCase, RecordSchema
from serving import export
from serving.model.contract import CARD_NAME, load_contract
from serving.model.loaded_model import LoadedModel, load_model
from tests.commands import outcome
from tests.serving.models import MODALITIES, python, schema_of, spec_of, write_run
from trainer.training.run_files import Run


def volumes_of(schema: RecordSchema, count: int = 9) -> npt.NDArray[Any]:
    rng = np.random.default_rng(5)
    top = 1.0 if schema.dtype == "float16" else float(np.iinfo(schema.dtype).max)
    return rng.uniform(0, top, (count, *schema.volume_shape)).astype(schema.dtype)


def examples_of(schema: RecordSchema, volumes: npt.NDArray[Any]) -> list[bytes]:
    return [
        encode_case(
            PreparedCase(
                patient_id=f"patient-{number}",
                volume=volume,
                affine=np.eye(4),
                present=(True,) * len(schema.modalities),
            ),
            schema,
        )
        for number, volume in enumerate(volumes)
    ]


def keras_logits(
    run: Run, volumes: npt.NDArray[Any], of: Sequence[int] | None = None
) -> npt.NDArray[np.float64]:
    """Mean over the members (or those of some), each called on one volume at a time."""
    chosen = volumes[..., [run.schema.modalities.index(name) for name in run.modalities]]
    members = [run.load_member(index) for index in (range(len(run.members)) if of is None else of)]
    each = [[np.asarray(m(v[None], training=False)).item() for v in chosen] for m in members]
    means: npt.NDArray[np.float64] = np.mean(each, axis=0)
    return means


def test_both_signatures_answer_as_the_members_do(loaded: LoadedModel, run_directory: Path) -> None:
    run = Run.load(run_directory)
    volumes = volumes_of(run.schema)
    expected = keras_logits(run, volumes)
    assert np.ptp(expected) > 0.01  # else the comparison would prove nothing

    probability, logit, of_members = loaded.predict_volumes(volumes)
    np.testing.assert_allclose(logit, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(probability, 1 / (1 + np.exp(-expected)), rtol=1e-6, atol=1e-6)

    members = [keras_logits(run, volumes, [index]) for index in range(2)]
    np.testing.assert_allclose(of_members.T, 1 / (1 + np.exp(-np.array(members))), atol=1e-6)

    examples = examples_of(run.schema, volumes)
    served = tf.saved_model.load(loaded.path).signatures["serving_default"](tf.constant(examples))
    assert served["patient_id"].numpy().tolist() == [f"patient-{n}".encode() for n in range(9)]
    assert served["logit"].numpy().tolist() == logit.tolist()
    assert served["probability"].numpy().tolist() == probability.tolist()

    answers = loaded.predict(examples)
    assert [answer.patient_id for answer in answers] == [f"patient-{n}" for n in range(9)]
    assert [answer.values["logit"] for answer in answers] == logit.tolist()
    assert [answer.values["probability"] for answer in answers] == probability.tolist()
    spread = [answer.values["spread"] for answer in answers]
    np.testing.assert_allclose(spread, np.ptp(of_members, axis=1) / 2, atol=1e-6)
    assert min(spread) > 0


@pytest.mark.parametrize("dtype", ["uint16", "float16"])
def test_every_stored_dtype_is_served(tmp_path: Path, dtype: str) -> None:
    run = write_run(tmp_path / "run", spec=spec_of(dtype=dtype), seeds=(3,))
    export.main(["--runs", str(tmp_path / "run"), "--output", str(tmp_path / "model")])
    volumes = volumes_of(run.schema, 3)
    answers = load_model(tmp_path / "model").predict(examples_of(run.schema, volumes))
    expected = keras_logits(run, volumes)
    np.testing.assert_allclose([a.values["logit"] for a in answers], expected, rtol=1e-6, atol=1e-6)


def test_the_signatures_have_the_promised_names_and_types(model: Path) -> None:
    signatures = tf.saved_model.load(str(model)).signatures
    assert set(signatures) == {"serving_default", "volumes"}
    examples = signatures["serving_default"]
    assert examples.structured_input_signature[1]["examples"].dtype == tf.string
    assert {name: out.dtype for name, out in examples.structured_outputs.items()} == {
        "patient_id": tf.string,
        "probability": tf.float32,
        "logit": tf.float32,
    }
    volumes = signatures["volumes"].structured_input_signature[1]["volumes"]
    assert (volumes.dtype, volumes.shape[1:]) == (tf.uint8, (6, 5, 4, 3))
    found = signatures["volumes"].structured_outputs
    assert {name: (out.dtype, out.shape.rank) for name, out in found.items()} == {
        "probability": (tf.float32, 1),
        "logit": (tf.float32, 1),
        "member_probability": (tf.float32, 2),
    }


def test_neither_batch_size_nor_company_changes_a_bit(loaded: LoadedModel) -> None:
    examples = examples_of(loaded.contract.schema, volumes_of(loaded.contract.schema))
    alone = [loaded.predict([example])[0] for example in examples]
    for size in (2, 3, 8, 9):
        batches = [examples[at : at + size] for at in range(0, len(examples), size)]
        assert [answer for batch in batches for answer in loaded.predict(batch)] == alone
    assert loaded.predict(examples[::-1]) == alone[::-1]


def test_a_record_of_another_recipe_is_refused_in_the_graph(loaded: LoadedModel) -> None:
    other = schema_of(spec_of(extra=1))
    examples = examples_of(other, volumes_of(other, 1))
    served = tf.saved_model.load(loaded.path).signatures["serving_default"]
    with pytest.raises(tf.errors.InvalidArgumentError, match="spec_fingerprint differs"):
        served(tf.constant(examples))
    with pytest.raises(ContractError, match="spec_fingerprint"):
        loaded.predict(examples)


def test_the_model_answers_where_only_tensorflow_is(tmp_path: Path, loaded: LoadedModel) -> None:
    volumes = volumes_of(loaded.contract.schema, 2)
    np.save(tmp_path / "volumes.npy", volumes)
    # Keras is refused too: what loads may use none of its objects.
    code = (
        "import sys, json, importlib.machinery\n"
        "class Wall:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        away = 'trainer serving beam_jobs keras tf_keras apache_beam'.split()\n"
        "        if name.split('.')[0] in away:\n"
        "            return importlib.machinery.ModuleSpec(name, self, origin='nowhere')\n"
        "    def create_module(self, spec):\n"
        "        raise ImportError(f'{spec.name} is not here')\n"
        "    def exec_module(self, module):\n"
        "        raise ImportError\n"
        "sys.meta_path.insert(0, Wall())\n"
        "import numpy, tensorflow as tf\n"
        f"model = tf.saved_model.load({loaded.path!r})\n"
        "answer = model.signatures['volumes'](volumes=numpy.load('volumes.npy'))\n"
        "assert not {'trainer', 'serving', 'beam_jobs', 'keras'} & set(sys.modules)\n"
        "print(json.dumps([answer[name].numpy().tolist() for name in\n"
        "                  ('probability', 'logit', 'member_probability')]))\n"
    )
    answers = json.loads(python(code, cwd=tmp_path))
    assert answers == [answer.tolist() for answer in loaded.predict_volumes(volumes)]


def test_the_contract_and_the_card_tell_what_was_measured(model: Path) -> None:
    contract = load_contract(model)
    assert contract.schema == schema_of(spec_of())
    assert contract.modalities == ("T1wCE", "FLAIR")
    assert [member["seed"] for member in contract.members] == [0, 1]
    assert (contract.prior[0], contract.ensemble) == (0.52, "logits")
    assert contract.calibration.method == "none"
    assert "has no oof_predictions.csv" in contract.calibration.why
    card = (model / CARD_NAME).read_text()
    assert "No clinical use" in card
    assert contract.cohort == {"patients": 100, "positive": 52}
    assert "100 patients: 52 positive, 48 negative." in card


def test_several_runs_become_one_ensemble(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / name / "run", seeds=seeds, trained_on=(100, positive))
        for name, seeds, positive in (("a", (0,), 40), ("b", (1, 2), 60))
    ]
    paths = [str(run.directory) for run in runs]
    export.main(["--runs", *paths, "--output", str(tmp_path / "model")])
    loaded = load_model(tmp_path / "model")
    assert [m["run"] for m in loaded.contract.members] == ["1", "2", "2"]
    assert loaded.contract.prior == (0.5,)
    volumes = volumes_of(runs[0].schema, 2)
    expected = (keras_logits(runs[0], volumes) + 2 * keras_logits(runs[1], volumes)) / 3
    np.testing.assert_allclose(loaded.predict_volumes(volumes)[1], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modalities": ("FLAIR", "T1w")}, "modalities: .*'T1wCE'.* in run .*a, .* in run .*b"),
        ({"modalities": MODALITIES[::-1]}, "modalities"),
        ({"spec": spec_of(dtype="uint16")}, "spec.dtype: 'uint8' in run .*a, 'uint16' in run .*b"),
        (
            {"schema": RecordSchema(**{**vars(schema_of(spec_of())), "spec_fingerprint": "z"})},
            r"b/run\.json: spec: its fingerprint is .*, the schema says 'z'",
        ),
    ],
)
def test_runs_that_take_other_volumes_are_refused_by_field(
    tmp_path: Path,
    changes: dict[str, Any],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_run(tmp_path / "a", seeds=(0,))
    write_run(tmp_path / "b", seeds=(0,), **changes)
    argv = ["--runs", tmp_path / "a", tmp_path / "b", "--output", tmp_path / "model"]
    code, _, err = outcome(export.main, argv, capsys, monkeypatch)
    assert code == 1
    assert err.count("\n") == 1
    assert re.search(message, err), err
    assert not (tmp_path / "model").exists()


def test_an_existing_model_is_replaced_only_when_requested(
    tmp_path: Path,
    run_directory: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = tmp_path / "model"
    write_run(tmp_path / "run", seeds=(7,))
    argv = ["--runs", run_directory, "--output", output]
    assert outcome(export.main, argv, capsys, monkeypatch)[0] == 0
    other = ["--runs", tmp_path / "run", "--output", output]
    code, _, err = outcome(export.main, other, capsys, monkeypatch)
    assert code == 2
    assert "--overwrite" in err
    assert len(load_contract(output).members) == 2
    assert outcome(export.main, [*other, "--overwrite"], capsys, monkeypatch)[0] == 0
    assert len(load_contract(output).members) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "run"]


def test_what_is_no_model_is_never_replaced(
    tmp_path: Path,
    run_directory: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    precious = tmp_path / "home" / "thesis.tex"
    precious.parent.mkdir()
    precious.write_text("years")
    argv = ["--runs", run_directory, "--output", precious.parent, "--overwrite"]
    code, _, err = outcome(export.main, argv, capsys, monkeypatch)
    assert code == 2
    assert "is not a model" in err
    assert precious.read_text() == "years"
    contract = precious.parent / "assets" / "contract.json"
    contract.parent.mkdir()
    of_a_model = "holds 'thesis.tex', which is no file of a model"
    for form, said in (("another", "is not a model"), ("voxelbeam-model", of_a_model)):
        contract.write_text(json.dumps({"format": form}))
        code, _, err = outcome(export.main, argv, capsys, monkeypatch)
        assert code == 2
        assert said in err
        assert precious.read_text() == "years"


def test_an_export_that_answers_otherwise_leaves_no_model(
    tmp_path: Path, run_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "serving.model.loaded_model.LoadedModel.predict_volumes",
        lambda self, volumes, _: (np.full(len(volumes), 0.5), np.zeros(len(volumes)), 0.5),
    )
    with pytest.raises(ContractError, match="nothing exported"):
        export.main(["--runs", str(run_directory), "--output", str(tmp_path / "model")])
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_dies_leaves_the_old_model(
    tmp_path: Path, run_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "model"
    argv = ["--runs", str(run_directory), "--output", str(output), "--overwrite"]
    export.main(argv)
    before = (output / "saved_model.pb").read_bytes()

    def die(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tf.saved_model, "save", die)
    with pytest.raises(KeyboardInterrupt):
        export.main(argv)
    assert (output / "saved_model.pb").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_a_killed_export_left_goes_and_what_it_put_aside_comes_back(
    tmp_path: Path, run_directory: Path
) -> None:
    output, left = tmp_path / "model", tmp_path / ".model.voxelbeam-0123abcd"
    argv = ["--runs", str(run_directory), "--output", str(output)]
    export.main(argv)
    left.mkdir()
    output.rename(left / "replaced")  # killed before the new one had the name
    with pytest.raises(UsageError, match="exists"):
        export.main(argv)
    assert (output / "saved_model.pb").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_runs_that_are_not_there_are_wrong_usage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ["--runs", tmp_path / "nowhere", "--output", tmp_path / "model"]
    code, _, err = outcome(export.main, argv, capsys, monkeypatch)
    assert (code, err.count("\n")) == (2, 1)
    assert "--runs: " in err


@pytest.mark.parametrize("gone", ["run.json", "fold-1/network.keras"])
def test_an_unfinished_run_is_refused(
    tmp_path: Path,
    gone: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_run(tmp_path / "run")
    (tmp_path / "run" / gone).unlink()
    argv = ["--runs", tmp_path / "run", "--output", tmp_path / "model"]
    code, _, err = outcome(export.main, argv, capsys, monkeypatch)
    assert code == 1
    assert gone in err
    assert err.count("\n") == 1
    assert not (tmp_path / "model").exists()


def test_members_trained_in_bfloat16_are_served_in_float32(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", precision="mixed_bfloat16", seeds=(0,))
    exact = write_run(tmp_path / "exact", precision="float32", seeds=(0,))
    export.main(["--runs", str(tmp_path / "run"), "--output", str(tmp_path / "model")])
    volumes = volumes_of(run.schema, 3)
    _, logit, _ = load_model(tmp_path / "model").predict_volumes(volumes)
    np.testing.assert_allclose(logit, keras_logits(exact, volumes), rtol=1e-6, atol=1e-6)
    assert np.abs(logit - keras_logits(run, volumes)).max() > 1e-6  # bfloat16 was at work there
