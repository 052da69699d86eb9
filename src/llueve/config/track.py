"""Which trackers follow a training: `[track]`."""

from pydantic import Field

from llueve.config.section import Section


class TrackConfig(Section):
    """Which trackers are told what `history.jsonl` holds (`[track]`); they need the extra `track`."""

    tensorboard: bool = False
    """Write events for TensorBoard into the run's folder `tensorboard`."""
    mlflow: str | None = Field(None, min_length=1)
    """Where MLflow keeps its runs: a folder, or the address of a server."""
    experiment: str = Field("llueve", min_length=1)
    """MLflow's name for what the run belongs to."""

    @property
    def mlflow_folder(self) -> str | None:
        """The folder, if it is one and no address."""
        return None if self.mlflow is None or ":" in self.mlflow else self.mlflow
