"""run.json: what a finished run holds; written last, so that its presence is the marker."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from beam_jobs.common.cli import UsageError
from beam_jobs.common.contract_json import (
    ContractError,
    Kind,
    ListOf,
    OneOf,
    Within,
    objects_of,
    require_kinds,
    require_known,
    require_that,
    shown,
)
from beam_jobs.common.files import interface as files
from beam_jobs.common.json_file import read_json, write_json
from beam_jobs.core.cohort.covariates import Covariate
from beam_jobs.core.cohort.target import Target
from beam_jobs.core.record import RecordSchema
from trainer.config.code_identity import identities, require_code, require_same
from trainer.config.run import EPOCH_CHOICES, TrainConfig
from trainer.config.run_layout import CONFIG_NAME, RUN_NAME, WEIGHTS_NAME
from trainer.data.trained_on import prior_of, require_trained_on
from trainer.metrics.stored import MOST, NO_CLAIM, require_metrics
from trainer.metrics.tasks.measure import measure_of

if TYPE_CHECKING:
    import keras

FORMAT = "voxelbeam-run"

# What run.json must hold, by type; the schema checks itself.
_KINDS: dict[str, Kind] = {
    **dict.fromkeys(("config", "schema", "spec", "trained_on", "metrics", "versions"), dict),
    **dict.fromkeys(("dataset_fingerprint", "model", "precision"), str),
    "epoch_choice": OneOf(EPOCH_CHOICES),
    **dict.fromkeys(("wall_seconds", "step_seconds"), Within(float, 0, MOST)),
    "input_wait": Within(float, 0, 1),
    "modalities": ListOf(str, least=1),
    "no_claim": NO_CLAIM,
    **dict.fromkeys(("trained_ids", "searched_ids"), ListOf(str)),
    "members": ListOf(dict, least=1),
}
_WEIGHTS_KINDS: dict[str, Kind] = dict.fromkeys(("setting", "file", "sha256"), str)
_WHERE_USED = ("code", "weights")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Member:
    """One trained network of a run.

    Attributes:
      fold: the fold it did not see in training.
      seed: of its weights and record order.
      path: of its .keras or .weights.h5 file, relative to the run's directory.
      epoch: the epoch (from 1) whose weights were kept.
      val_auc: AUC of that epoch over the whole held-out fold, of a binary; None of others.
      val_score: their score of it, by the measure of the task.
    """

    fold: int
    seed: int
    path: str
    epoch: int
    val_auc: float | None = None
    val_score: float | None = None

    @property
    def score(self) -> float:
        """Of that epoch over the whole held-out fold, by the measure of the task."""
        found = self.val_auc if self.val_score is None else self.val_score
        assert found is not None
        return found

    def to_json(self) -> dict[str, Any]:
        """A JSON object, without what is None."""
        data = dataclasses.asdict(self)
        return {name: value for name, value in data.items() if value is not None}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A finished training run.

    Attributes:
      directory: where it lies, on a disk or in a store; not part of run.json.
      config: `TrainConfig` as JSON, resolved.
      schema: the record contract of the dataset it was trained on.
      spec: the dataset's `PreprocessSpec` as JSON.
      dataset_fingerprint: of the dataset's manifest.
      modalities: channels the members take, in order; a subset of the schema's.
      model: name in `trainer.networks.registry`' registry.
      members: one a trained fold.
      trained_on: `patients` that at least one member was trained on, and how many had which label
        (`data.trained_on`).
      trained_ids: their ids, as the dataset spells them; a model's contract does not have them.
      searched_ids: ids, normalised, of those on whom a study chose the settings; none without one.
      code: identities (`trainer.config.code_identity`) of the user's functions that it is made of;
        not part of run.json where it is made of none, likewise `weights`.
      weights: one a file that the networks started from: its setting, its name and its sha256.
      epoch_choice: how the members' epochs were chosen, one of `EPOCH_CHOICES`.
      no_claim: reason codes for which the metrics allow no claim ("searched", "permuted").
      metrics: the score of all out-of-fold predictions, its interval, n and per-fold values.
      precision: the policy it was trained under ("float32", ...), never "auto".
      versions: of the libraries that trained it.
      wall_seconds: from first batch to last prediction, over all starts.
      step_seconds: median over epochs of the time an optimizer step took.
      input_wait: share of the training time that was spent waiting for a batch.
    """

    directory: str
    config: Mapping[str, Any]
    schema: RecordSchema
    spec: Mapping[str, Any]
    dataset_fingerprint: str
    modalities: tuple[str, ...]
    model: str
    members: tuple[Member, ...]
    trained_on: Mapping[str, Any]
    trained_ids: tuple[str, ...]
    searched_ids: tuple[str, ...] = ()
    code: tuple[Mapping[str, Any], ...] = ()
    weights: tuple[Mapping[str, str], ...] = ()
    epoch_choice: str
    no_claim: tuple[str, ...]
    metrics: Mapping[str, Any]
    precision: str
    versions: Mapping[str, str]
    wall_seconds: float
    step_seconds: float
    input_wait: float = 0.0

    @property
    def target(self) -> Target:
        """What the labels say, and the members answer."""
        return self.schema.target

    @property
    def covariates(self) -> tuple[Covariate, ...]:
        """What else the members take of a patient, in order; some of the schema's."""
        known = {one.name: one for one in self.schema.covariates}
        return tuple(known[name] for name in self.config.get("covariates") or ())

    @property
    def prior(self) -> tuple[float, ...]:
        """What is answered of a patient without an image, (outputs,): see `data.trained_on`."""
        return prior_of(self.target, self.trained_on)

    @property
    def prevalence(self) -> float:
        """Share of positive labels among the patients trained on, of a binary."""
        return self.prior[0]

    def to_json(self) -> dict[str, Any]:
        """The object that run.json holds."""
        fields = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name != "directory"
            and (field.name not in _WHERE_USED or getattr(self, field.name))
        }
        return {
            **fields,
            "format": FORMAT,
            "schema": self.schema.to_json(),
            "modalities": list(self.modalities),
            "no_claim": list(self.no_claim),
            "trained_ids": list(self.trained_ids),
            "searched_ids": list(self.searched_ids),
            "members": [member.to_json() for member in self.members],
        }

    def save(self) -> None:
        """Writes run.json whole or not at all."""
        write_json(files.join(self.directory, RUN_NAME), self.to_json())

    @classmethod
    def load(cls, path: files.StrPath) -> Run:
        """Reads a run's directory.

        Raises:
          ContractError: no run there, an unfinished one, or a run.json that is not ours.
        """
        directory = files.text(path)
        file = files.join(directory, RUN_NAME)
        try:
            data = read_json(file)
        except (FileNotFoundError, NotADirectoryError) as error:
            unfinished = files.stat(files.join(directory, CONFIG_NAME)) is not None
            reason = "the run did not finish" if unfinished else "not a run"
            raise ContractError(f"{directory}: no {RUN_NAME} ({reason})") from error
        if data.get("format") != FORMAT:
            raise ContractError(f"{file}: format {shown(data.get('format'))}, {FORMAT!r} required")
        if "epoch_choice" not in data:
            raise ContractError(
                f"{file}: of a version before 0.3, which chose epochs on the very patients they "
                "were scored on; train it again"
            )
        names = {field.name for field in dataclasses.fields(cls)} - {"directory"}
        data = {**{name: [] for name in _WHERE_USED}, **data}
        if missing := names - set(data):
            raise ContractError(f"{file}: lacks {', '.join(sorted(missing))}")
        try:
            require_kinds(data, _KINDS)
            schema = RecordSchema.from_json(data["schema"])
            kinds = _member_kinds(schema.target)
            for place, member in enumerate(objects_of(data, "members")):
                require_kinds(member, kinds, where=f"members[{place}].")
                files.member(directory, member["path"], folders=True)
                require_known(member, kinds, where=f"members[{place}].")
            require_kinds(data["versions"], dict.fromkeys(data["versions"], str), where="versions.")
            told = data["trained_on"]
            require_trained_on(schema.target, told, where="trained_on.")
            if len(data["trained_ids"]) != told["patients"]:
                raise ContractError(
                    f"trained_ids: {len(data['trained_ids'])} found, those of "
                    f"{told['patients']} patients required"
                )
            require_code(data["code"], where="code")
            for place, one in enumerate(objects_of(data, "weights")):
                require_kinds(one, _WEIGHTS_KINDS, where=f"weights[{place}].")
                require_known(one, _WEIGHTS_KINDS, where=f"weights[{place}].")
            require_metrics(data["metrics"], where="metrics.")
            schema.require_recipe(data["spec"])
            known = set(data["modalities"]) <= set(schema.modalities)
            require_that(known, data, "modalities", f"some of {shown(schema.modalities)}")
            _require_covariates(data["config"], schema)
            return cls(
                directory=directory,
                **{
                    **{name: data[name] for name in names},
                    "schema": schema,
                    "modalities": tuple(data["modalities"]),
                    "no_claim": tuple(data["no_claim"]),
                    "trained_ids": tuple(data["trained_ids"]),
                    "searched_ids": tuple(data["searched_ids"]),
                    "code": tuple(data["code"]),
                    "weights": tuple(data["weights"]),
                    "members": tuple(Member(**member) for member in data["members"]),
                },
            )
        except ContractError as error:
            raise ContractError(f"{file}: {error}") from error

    def load_member(self, index: int) -> keras.Model:
        """Member `index` as a model for inference: stored volume (and covariates) → answers.

        It computes as it was trained; in float32 where a user's own code makes its layers.

        Raises:
          ContractError: the file is gone or unreadable, or takes other volumes than run.json says;
            or the user's own code is not there, or makes another network.
        """
        # TensorFlow takes seconds: reading run.json must not wait for it
        import trainer.networks.registry  # noqa: F401  registers the custom layer
        from trainer.networks.stored import load_network, read_weights

        file = files.join(self.directory, self.members[index].path)
        if files.stat(file) is None:
            raise ContractError(f"{file}: member {index} of the run is missing")
        model = self.fresh_network() if self.has_own_code else None
        with files.fetched(file) as local:
            try:
                if model is None:
                    model = load_network(local)
                else:
                    read_weights(model, local)
            except Exception as error:  # Keras raises zipfile's, h5py's and its own
                wanted = "readable Keras model"
                wanted = f"file of what {self.model} makes now" if self.has_own_code else wanted
                raise ContractError(f"{file}: not a {wanted}: {error}") from error
        expected: list[tuple[int, ...]] = [(*self.schema.shape, len(self.modalities))]
        if self.covariates:
            expected.append((len(self.covariates),))
        found = [tuple(one.shape[1:]) for one in model.inputs]
        if found != expected:
            raise ContractError(
                f"{file}: takes {_of_inputs(found)}, run.json says {_of_inputs(expected)}"
            )
        return model

    @property
    def has_own_code(self) -> bool:
        """Whether a user's own code makes the members' layers: their files hold weights alone."""
        return self.members[0].path.endswith(WEIGHTS_NAME)

    def fresh_network(self) -> keras.Model:
        """The members' network as that code makes it now, in float32, with weights before training.

        Raises:
          ContractError: the code is not there, is not what it was when the run was trained, or
            makes what does not fit.
        """
        # TensorFlow takes seconds: reading run.json must not wait for it
        from trainer.networks.layers import under_policy
        from trainer.networks.registry import rebuilt_model

        try:
            config = TrainConfig.from_json(self.config)
            makers = [pair for pair in config.references if pair[0] in ("--model", "--encoder")]
            # Weights of the same shapes would fit a network that answers otherwise.
            require_same(self.code, identities(makers))
            with under_policy("float32"):
                made_of = (config.network, self.schema.shape, len(self.modalities))
                return rebuilt_model(
                    *made_of, self.schema.dtype, target=self.target, covariates=self.covariates
                )
        except (UsageError, ContractError) as error:
            raise ContractError(f"{files.join(self.directory, RUN_NAME)}: {error}") from error


def _member_kinds(target: Target) -> dict[str, Kind]:
    """What a member in run.json must hold."""
    score = "val_auc" if target.task == "binary" else "val_score"
    return {
        **dict.fromkeys(("fold", "seed"), Within(int, 0, MOST)),
        **{"epoch": Within(int, 1, MOST), "path": str},
        score: Within(float, measure_of(target).least, 1),
    }


def _require_covariates(config: Mapping[str, Any], schema: RecordSchema) -> None:
    """Refuses a config whose covariates are not the dataset's."""
    if config.get("covariates") is None:
        return
    require_kinds(config, {"covariates": ListOf(str)}, where="config.")
    known = set(config["covariates"]) <= set(schema.covariate_names)
    required = f"some of {shown(schema.covariate_names)}"
    require_that(known, config, "covariates", required, where="config.")


def _of_inputs(shapes: Sequence[tuple[int | None, ...]]) -> str:
    """The shapes of a model's inputs, for a message."""
    covariates = [f"and {shape[0]} covariates" for shape in shapes[1:]]
    return " ".join([f"volumes {shapes[0]}", *covariates])
