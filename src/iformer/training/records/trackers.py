"""Experiment trackers of a run, through Accelerate: TensorBoard, Weights & Biases, MLflow and Comet.

Server addresses, credentials and offline modes are set as each service documents, such as by `MLFLOW_TRACKING_URI`
or `WANDB_MODE=offline`.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from iformer.dependencies import require
from iformer.errors import MissingDependencyError, UnknownNameError, UserError, one_line
from iformer.files import json_text, read_at_most, write_text

if TYPE_CHECKING:
    from iformer.training.job import TrainJob

TRACKERS = {
    "tensorboard": ("tensorboard", "tensorboard"),
    "wandb": ("wandb", "wandb"),
    "mlflow": ("mlflow", "mlflow"),
    "comet": ("comet_ml", "comet-ml"),
}
"""Names of trackers, each with the module it imports and the package to install."""
NO_TRACKER = "none"
PROJECT = "iformer"
"""Default project or experiment name; a service's own variable, such as `WANDB_PROJECT`, takes precedence."""


def tracker_names(given: Iterable[str]) -> tuple[str, ...]:
    """Return the distinct tracker names in `given`; an item may list several with commas, and `none` means none.

    Raises:
        UnknownNameError: a name is not a tracker.
        UserError: an item is empty, or `none` is given together with other names.
        MissingDependencyError: the package of a tracker is not installed.
    """
    items = list(given)
    if not all(item.strip(", ") for item in items):
        raise UserError(f"--tracker is empty; give {', '.join(TRACKERS)}, or {NO_TRACKER} for no tracker")
    names = tuple(dict.fromkeys(name for item in items for name in map(str.strip, item.split(",")) if name))
    if NO_TRACKER in names:
        if len(names) > 1:
            raise UserError(f"--tracker has {NO_TRACKER} and others; give one of them")
        return ()
    for name in names:
        if name not in TRACKERS:
            raise UnknownNameError("tracker", name, [*TRACKERS, NO_TRACKER])
        module, package = TRACKERS[name]
        if importlib.util.find_spec(module) is None:
            raise MissingDependencyError(f"{module} is not installed; run: pip install {package}")
    return names


def stored_trackers(folder: Path) -> tuple[str, ...] | None:
    """Return the tracker names stored in a run folder; None if nothing is stored, as with TensorBoard alone."""
    ids = _read_ids(folder / "trackers.json")
    if ids is None:
        return None
    return (*ids, *(["tensorboard"] if (folder / "tensorboard").is_dir() else []))


def open_trackers(job: TrainJob, *, step: int) -> Trackers:
    """Start the trackers of a new run, or continue those of a resumed run at `step`; see `Trackers`.

    Raises:
        UserError: a tracker cannot be started.
    """
    return Trackers(
        job.tracker_names,
        job.folder,
        config={"model": job.model_name, "data": job.data_name, **job.recipe.to_plain()},
        resume=job.resume,
        purge_from=step + 1 if job.resume else None,
    )


_MLFLOW_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
"""Environment variables for MLflow: few retries and a short timeout in seconds, because by default a server that
does not answer blocks training for minutes."""


class Trackers:
    """The trackers of one run. A tracker that fails is reported once and no longer used; training continues."""

    def __init__(
        self,
        names: Sequence[str],
        folder: Path,
        *,
        config: Mapping[str, Any],
        resume: bool = False,
        purge_from: int | None = None,
    ) -> None:
        """Start a run in each tracker, or continue the earlier one if the training is resumed.

        Args:
            names: see `tracker_names`.
            folder: the run folder. Its name becomes the run's name.
            config: settings of the run, nested.
            resume: continue the runs listed in `trackers.json`.
            purge_from: step from which TensorBoard discards events of the interrupted run. None: keep all.

        Raises:
            UserError: a tracker cannot be started.
        """
        self._running: dict[str, Any] = {}
        stored = folder / "trackers.json"
        ids = (_read_ids(stored) if resume else None) or {}
        kinds = require("accelerate.tracking", extra="train")
        makers: dict[str, Callable[[], Any]] = {
            "tensorboard": lambda: kinds.TensorBoardTracker("tensorboard", folder, purge_step=purge_from),
            "wandb": lambda: kinds.WandBTracker(
                os.environ.get("WANDB_PROJECT", PROJECT),
                name=folder.name,
                dir=str(folder),
                **({"id": ids["wandb"], "resume": "allow"} if "wandb" in ids else {}),
            ),
            "mlflow": lambda: kinds.MLflowTracker(PROJECT, run_name=folder.name, run_id=ids.get("mlflow")),
            "comet": lambda: kinds.CometMLTracker(
                os.environ.get("COMET_PROJECT_NAME", PROJECT), experiment_key=ids.get("comet")
            ),
        }
        if "mlflow" in names:
            for variable, value in _MLFLOW_PATIENCE.items():
                os.environ.setdefault(variable, value)
        self._hook = threading.excepthook
        if "tensorboard" in names:
            threading.excepthook = self._except_of_tensorboard
        for name in names:
            try:
                tracker = makers[name]()
                tracker.start()
                # Accelerate makes another folder for TensorBoard; MLflow refuses changed values of an existing run
                if name != "tensorboard" and name not in ids:
                    tracker.store_init_configuration(dict(_flat(config)))
            except Exception as error:  # the services have no common base class
                self.close()
                reason = one_line(error, limit=1000)
                if isinstance(error, FileExistsError) and error.filename:
                    reason = f"{error.filename} is in its way; move that away"
                if isinstance(error, ModuleNotFoundError):
                    reason = f"it is not installed; run: pip install {TRACKERS[name][1]}"
                others = ",".join(other for other in names if other != name) or NO_TRACKER
                raise UserError(
                    f"the tracker {name} cannot be started ({reason}); --tracker {others} "
                    f"{'continues' if resume else 'trains'} without it"
                ) from error
            self._running[name] = tracker
        self.ids = {name: _RUN_ID[name](tracker) for name, tracker in self._running.items() if name in _RUN_ID}
        """Run ids by tracker; TensorBoard has none."""
        self._stored = stored
        self._none = not names

    def store_ids(self) -> None:
        """Write the run ids to `trackers.json`, from which a resumed run reads them; `{}` if it has no trackers.

        TensorBoard alone writes no file, and a run that goes on without its trackers keeps their ids.

        Raises:
            OutputError: the file cannot be written.
        """
        if self.ids or (self._none and not self._stored.exists()):
            write_text(self._stored, json_text(self.ids, indent=2))

    def __bool__(self) -> bool:
        return bool(self._running)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log numbers at an optimizer step."""
        self._each(lambda name, tracker: tracker.log(dict(values), step=step))

    def log_picture(self, name: str, picture: Image.Image | None, step: int) -> None:
        """Log an RGB picture, if there is one, at an optimizer step."""
        if picture is None:
            return

        def log(kind: str, tracker: Any) -> None:
            if kind == "tensorboard":
                tracker.log_images({name: np.asarray(picture)[None]}, step=step, dataformats="NHWC")
            elif kind == "wandb":
                tracker.log_images({name: [picture]}, step=step)
            elif kind == "mlflow":
                importlib.import_module("mlflow").log_image(picture, f"{name}/step-{step:07d}.png")
            else:
                tracker.writer.log_image(picture, name=name, step=step)

        self._each(log)

    def flush(self) -> None:
        """Flush TensorBoard's buffer to disk; the other trackers send their data on their own."""
        if "tensorboard" in self._running:
            self._running["tensorboard"].writer.flush()

    def close(self) -> None:
        """End the run of each tracker."""
        self._each(lambda name, tracker: tracker.finish())
        self._running.clear()
        if threading.excepthook == self._except_of_tensorboard:
            threading.excepthook = self._hook

    def _except_of_tensorboard(self, failed: threading.ExceptHookArgs) -> None:
        """Print the traceback of a thread, but not of TensorBoard's: its next call raises the same error."""
        if not type(failed.thread).__module__.startswith("tensorboard."):
            self._hook(failed)

    def _each(self, call: Callable[[str, Any], None]) -> None:
        for name, tracker in list(self._running.items()):
            try:
                call(name, tracker)
            except Exception as error:  # the services have no common base class
                del self._running[name]
                note = f"note: the tracker {name} failed and gets nothing more ({one_line(error, limit=300)})"
                print(note, file=sys.stderr, flush=True)


_RUN_ID: dict[str, Callable[[Any], str]] = {
    "wandb": lambda tracker: str(tracker.tracker.id),
    "mlflow": lambda tracker: str(tracker.tracker.info.run_id),
    "comet": lambda tracker: str(tracker.tracker.get_key()),
}


_MAX_IDS_BYTES = 1 << 16


def _read_ids(path: Path) -> dict[str, str] | None:
    """Return the run ids by tracker; None if the file is absent or damaged."""
    with suppress(OSError, ValueError, RecursionError):
        ids = json.loads(read_at_most(path, _MAX_IDS_BYTES) or b"")
        if isinstance(ids, dict):
            return {name: value for name, value in ids.items() if name in TRACKERS and isinstance(value, str)}
    return None


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Yield (dotted name, value) for each setting of a nested config; lists become text."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            plain = value is None or isinstance(value, bool | int | float | str)
            yield f"{prefix}{name}", value if plain else str(value)
