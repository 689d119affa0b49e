"""The registry's store with a gate in it. Every caller in the server gets this one, whatever route the request took."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from mlflow.entities.model_registry import ModelVersion, ModelVersionTag, RegisteredModel
from mlflow.entities.model_registry.model_version_stages import STAGE_DELETED_INTERNAL
from mlflow.exceptions import MlflowException
from mlflow.store.model_registry.abstract_store import AbstractStore
from mlflow.store.model_registry.dbmodels.models import SqlModelVersion, SqlModelVersionTag
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore

from mlflow_lipschitz_gate.config import GateConfig
from mlflow_lipschitz_gate.doors import (
    COPY_MARK,
    MARK,
    Mark,
    alias_door,
    close_unvouched,
    finish_interrupted,
    marked_now,
    passing,
    stage_door,
    surely,
    take_back_copy,
    unmark,
)
from mlflow_lipschitz_gate.names import canonical_stage
from mlflow_lipschitz_gate.overrides import override_reason, record_override
from mlflow_lipschitz_gate.refusals import audit_and_promote, denied
from mlflow_lipschitz_gate.registrations import Registrations, announcing
from mlflow_lipschitz_gate.verification import Subject, problems_with, subject_of

_DATABASES = ("sqlite", "postgresql")
_OTHER_STORE = (
    "Start the server with a SQLite or PostgreSQL --backend-store-uri and no read replica, "
    "then: mlflow-lipschitz promote models:/NAME/VERSION --alias ALIAS"
)


class GatedStore:
    """Mixed into the class of a store. Calls that touch nothing protected go straight through to it."""

    lipschitz_gate: GateConfig
    lipschitz_registrations: Registrations

    @property
    def plain(self) -> Any:
        """The store without the gate."""
        return super()

    def set_registered_model_alias(self, name: str, alias: str, version: str) -> None:
        """As the store does; a protected alias needs an audit, and what only looks like one is refused."""
        aliases, plain = self.lipschitz_gate.aliases, self.plain
        if meant := aliases.looks_like(alias):
            remedy = f"If {meant} is meant: mlflow-lipschitz promote models:/{name}/{version} --alias {meant}"
            reasons = [f"it looks like the protected alias {meant} and is another"]
            raise denied(f"the alias {alias!r} on {name}", reasons, remedy)
        if not aliases.same(alias):
            return plain.set_registered_model_alias(name, alias, version)
        name, number = self._as_stored(name, version)
        door = alias_door(self, self.lipschitz_gate, name, alias, number)
        return passing(self, self.lipschitz_gate, door, lambda: plain.set_registered_model_alias(name, alias, number))

    def transition_model_version_stage(
        self, name: str, version: str, stage: str, archive_existing_versions: bool
    ) -> ModelVersion:
        """As the store does; a protected stage needs an audit."""
        plain = self.plain
        protected = canonical_stage(stage, self.lipschitz_gate.file.protect.stages)
        if protected is None:
            return plain.transition_model_version_stage(name, version, stage, archive_existing_versions)
        name, number = self._as_stored(name, version)
        door = stage_door(self, self.lipschitz_gate, name, protected, number)
        return passing(
            self,
            self.lipschitz_gate,
            door,
            lambda: plain.transition_model_version_stage(name, number, protected, archive_existing_versions),
        )

    def create_model_version(
        self, name: str, source: str, run_id: str | None = None, tags: Any = None, *args: Any, **kwargs: Any
    ) -> ModelVersion:
        """As the store does; into a protected name come only copies of audited versions."""
        config, plain = self.lipschitz_gate, self.plain

        # A copy takes all tags along; the marks of its original are not about it.
        tags = [tag for tag in tags or [] if not tag.key.startswith(MARK)]

        def create(tags: Any) -> ModelVersion:
            with announcing(self.lipschitz_registrations):
                return plain.create_model_version(name, source, run_id, tags, *args, **kwargs)

        if not config.names.match(name):
            return create(tags)
        what = f"a version of the protected model {name} from {source}"
        if reason := override_reason():
            record_override(config, what, reason)
            return create(tags)
        _demand_source(self, config, name, source)
        made = create([*tags, ModelVersionTag(COPY_MARK, marked_now())])
        try:
            if reasons := problems_with(subject_of(self, name, str(made.version)), config, name):
                raise denied(what, reasons, audit_and_promote(source, f"--to {name}"))
        except BaseException:
            surely(lambda: take_back_copy(self, name, str(made.version)), f"{what} is taken back")
            raise
        unmark(self, name, str(made.version), COPY_MARK)
        return self.get_model_version(name, made.version)  # type: ignore[attr-defined]

    def rename_registered_model(self, name: str, new_name: str) -> RegisteredModel:
        """As the store does; neither into a protected name, nor out of one, nor while a version stands in a protected place."""
        config = self.lipschitz_gate
        reasons = [f"{n} is a protected name" for n in (name, new_name) if config.names.match(n)]
        reasons += _protected_places(self, config, name)
        if reasons:
            what = f"to rename {name} to {new_name}"
            remedy = (
                "An attestation is for one name. Copy the audited version instead:\n"
                f"mlflow-lipschitz audit models:/{name}/VERSION --policy POLICY.yaml --data ROWS --sign-key KEY.pem\n"
                f"then: mlflow-lipschitz promote models:/{name}/VERSION --to {new_name}"
            )
            if not (reason := override_reason()):
                raise denied(what, reasons, remedy)
            record_override(config, what, reason)
            return self.plain.rename_registered_model(name, new_name)
        renamed = self.plain.rename_registered_model(name, new_name)
        # A promotion may have come in between the question and the answer, and its attestation is for the old name.
        if closed := close_unvouched(self, config, new_name):
            remedy = audit_and_promote(f"models:/{new_name}/VERSION", "--alias ALIAS")
            raise denied(
                f"what {name} got while it was renamed to {new_name}", [f"took back {c}" for c in closed], remedy
            )
        return renamed

    def _as_stored(self, name: str, version: str) -> tuple[str, str]:
        """Name and version as the database spells them: it may take ` 1`, `01` or `١` for 1."""
        found = self.get_model_version(name, version)  # type: ignore[attr-defined]
        return found.name, str(found.version)

    def set_model_version_tag(self, name: str, version: str, tag: ModelVersionTag) -> None:
        """As the store does; the gate's own marks are nobody else's to set, since a start acts on them."""
        _refuse_mark(name, tag.key)
        self.plain.set_model_version_tag(name, version, tag)

    def delete_model_version_tag(self, name: str, version: str, key: str) -> None:
        """As the store does, but for the gate's own marks."""
        _refuse_mark(name, key)
        self.plain.delete_model_version_tag(name, version, key)


def gated(store: AbstractStore, config: GateConfig, registrations: Registrations) -> AbstractStore:
    """Put the gate into `store`, and finish what a killed server left half open. The same object comes back."""
    if not isinstance(store, GatedStore):
        if problem := store_problem(store):
            raise denied("every request", [problem], _OTHER_STORE)
        kind = type(store)
        store.lipschitz_gate, store.lipschitz_registrations = config, registrations
        store.__class__ = type(f"Gated{kind.__name__}", (GatedStore, kind), {})
        finish_interrupted(store, config, _marks(store))
    return store


def gated_builder(
    build: Callable[..., AbstractStore], config: GateConfig, registrations: Registrations
) -> Callable[..., AbstractStore]:
    """A builder of stores whose stores have the gate."""

    @wraps(build)
    def build_gated(*args: Any, **kwargs: Any) -> AbstractStore:
        return gated(build(*args, **kwargs), config, registrations)

    return build_gated


def store_problem(store: AbstractStore) -> str | None:
    """Why the gate would not hold in front of this store; None when it does."""
    if not isinstance(store, SqlAlchemyStore) or store.db_type not in _DATABASES:
        # Others compare names without case, accents or spaces at the end: two spellings, one row.
        kind = getattr(store, "db_type", type(store).__name__)
        return f"the registry is in {kind}, and this gate was tried with SQLite and PostgreSQL only"
    if store.read_engine is not None:
        return "the registry is read from a replica, which may be behind what was just written"
    return None


def _marks(store: AbstractStore) -> list[Mark]:
    assert isinstance(store, SqlAlchemyStore)
    with store.ManagedSessionMaker(read_only=False) as session:
        marked = SqlModelVersionTag.key.startswith(MARK, autoescape=True)
        alive = SqlModelVersion.current_stage != STAGE_DELETED_INTERNAL
        rows = session.query(SqlModelVersionTag).join(SqlModelVersion).filter(marked, alive).all()
        return [Mark(row.name, str(row.version), row.key, row.value) for row in rows]


def _refuse_mark(name: str, key: str) -> None:
    if key.startswith(MARK):
        remedy = f"Promote an audited version instead: mlflow-lipschitz promote models:/{name}/VERSION --alias ALIAS"
        raise denied(f"the tag {key} on {name}", ["the gate keeps it for itself"], remedy)


def _demand_source(store: Any, config: GateConfig, name: str, source: str) -> None:
    what = f"a version of the protected model {name} from {source}"
    head, _, version = source.removeprefix("models:/").rpartition("/")
    if not source.startswith("models:/") or not head or not version.isdigit():
        reasons = ["only a copy of an audited version may go there, and this is no copy of a version"]
        raise denied(what, reasons, audit_and_promote("models:/NAME/VERSION", f"--to {name}"))
    subject: Subject = subject_of(store, head, version)
    if reasons := problems_with(subject, config, name):
        raise denied(what, reasons, audit_and_promote(subject.uri, f"--to {name}"))


def _protected_places(store: Any, config: GateConfig, name: str) -> list[str]:
    try:
        model = store.get_registered_model(name)
    except MlflowException:
        return []  # the store says it better than we could
    held = [f"it holds the protected alias {alias}" for alias in model.aliases if config.aliases.same(alias)]
    stages = {v.current_stage for v in store.get_latest_versions(name)} & {*config.file.protect.stages}
    return held + [f"a version is in the protected stage {stage}" for stage in sorted(stages)]
