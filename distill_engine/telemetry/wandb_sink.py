"""Weights & Biases: the same records on a dashboard, online or on disk for later."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from distill_engine.telemetry.sinks import CloseStatus, Record

WandbMode = Literal["auto", "online", "offline", "disabled"]

RUN_ID_FILE = "wandb_run_id"
SAMPLES_TABLE = "valid/samples"


@dataclass(frozen=True)
class WandbOptions:
    """Where a run belongs in W&B. mode auto: what WANDB_MODE says, else online when a key is found, else offline."""

    project: str
    entity: str | None = None
    group: str | None = None
    tags: tuple[str, ...] = ()
    mode: WandbMode = "auto"


class StoredRunId:
    """The W&B run id of a run folder, as a part of its checkpoints: a restart goes on in the same W&B run even if
    the file that normally says so is lost."""

    def __init__(self, run_folder: Path) -> None:
        self._folder = run_folder

    def state_dict(self) -> dict[str, Any]:
        """The id, or None where W&B is off."""
        return {"run_id": _stored_id(self._folder)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to do: a run that is being resumed has started its sink already, see `restore`."""

    def restore(self) -> None:
        """Write the id of the newest checkpoint back if its file is gone; to be called before the sink is built."""
        if _stored_id(self._folder) is not None:
            return
        for file in sorted(self._folder.glob("checkpoints/step-*/wandb/state.json"), reverse=True):
            try:
                run_id = json.loads(file.read_text(encoding="utf-8"))["run_id"]
            except (OSError, ValueError, KeyError, TypeError):
                continue  # a damaged checkpoint: the next older one may know
            if isinstance(run_id, str):
                _store_id(self._folder, run_id)
                return


class WandbSink:
    """One W&B run, continued under the same id however often training restarts in `run_folder`.

    Building it never raises and never asks: without a key, with a bad one, or without a server within
    `init_timeout_seconds`, the run is kept offline under `run_folder/wandb` and one line says so and how to
    upload it. A restart repeats the records since its checkpoint; they carry the same steps and values as
    before, so charts over `step` do not change.

    The key is left to wandb (WANDB_API_KEY, netrc, `wandb login`); it is not read, stored or passed on here.
    """

    def __init__(
        self,
        run_folder: Path | str,
        name: str,
        options: WandbOptions,
        config: Mapping[str, Any],
        say: Callable[[str], None],
        *,
        run_id: str | None = None,
        init_timeout_seconds: float = 20.0,
        finish_timeout_seconds: float = 60.0,
    ) -> None:
        self._folder = Path(run_folder)
        self._say = say
        self._init_timeout = init_timeout_seconds
        self._finish_timeout = finish_timeout_seconds
        self._run: Any = None
        self.run_id: str | None = None
        mode = _asked_mode(options.mode)
        if mode == "disabled":
            return
        try:
            self.run_id = run_id or _stored_id(self._folder) or secrets.token_hex(4)
            _store_id(self._folder, self.run_id)
            self._run = self._start(mode, self._arguments(name, options, config))
        except Exception as error:
            say(f"W&B: not available, this run is not logged there ({_reason(error)}). metrics.jsonl has everything.")

    def write(self, record: Record) -> None:
        """Logs the values over `step`, and rows as a table. A record without either is passed over."""
        if self._run is None or not (record.values or record.rows):
            return
        content: dict[str, Any] = {"step": record.step, **record.values}
        if record.rows:
            columns = list(record.rows[0])
            content[SAMPLES_TABLE] = _wandb().Table(columns, [[row[name] for name in columns] for row in record.rows])
        self._run.log(content)

    def close(self, status: CloseStatus) -> None:
        """Uploads what is left for a bounded time; what remains stays on disk, and a line says so."""
        if self._run is None:
            return
        run, self._run = self._run, None
        try:
            run.finish(exit_code=1 if status == "failed" else 0)
        except TimeoutError:
            where = Path(run.settings.sync_dir)
            self._say(f"W&B: the upload did not end within {self._finish_timeout:.0f} s. {_how_to_sync(where)}")
        finally:
            _wandb().teardown()

    def _arguments(self, name: str, options: WandbOptions, config: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "dir": str(self._folder),
            "project": options.project,
            "entity": options.entity,
            "group": options.group,
            "tags": list(options.tags),
            "name": name,
            "config": dict(config),
            "id": self.run_id,
            "resume": "allow",
        }

    def _start(self, mode: WandbMode, arguments: dict[str, Any]) -> Any:
        wandb = _wandb()
        if mode != "offline":
            try:
                if wandb.login(prompt=False, verify=False):
                    return self._online(wandb, arguments)
                reason = "no API key found"
            except Exception as error:
                reason = _reason(error)
                # wandb's service still holds the id of the failed attempt and would refuse it.
                wandb.teardown()
            where = self._folder / "wandb" / f"offline-run-*-{self.run_id}"
            self._say(f"W&B: {reason}; this run is logged offline. {_how_to_sync(where)}")
        return self._init(wandb, "offline", arguments)

    def _online(self, wandb: ModuleType, arguments: dict[str, Any]) -> Any:
        run = self._init(wandb, "online", arguments)
        self._say(f"W&B: {run.url}")
        return run

    def _init(self, wandb: ModuleType, mode: WandbMode, arguments: dict[str, Any]) -> Any:
        settings = wandb.Settings(
            **_prompt_flush(wandb),
            silent=True,
            console="off",  # the terminal belongs to the progress display
            init_timeout=self._init_timeout,
            finish_timeout=self._finish_timeout,
            finish_timeout_raises=True,
            disable_code=True,
            disable_git=True,  # it would save uncommitted changes; the commit is in our config
        )
        run = wandb.init(mode=mode, settings=settings, **arguments)
        run.define_metric("step")
        run.define_metric("*", step_metric="step")
        return run


def _wandb() -> ModuleType:
    """The library, imported only when wanted: it costs half a second and starts nothing yet."""
    os.environ.setdefault("WANDB_SILENT", "true")
    # wandb reports on itself over the network and complains on stderr where there is none.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    return wandb


def _prompt_flush(wandb: ModuleType) -> dict[str, float]:
    """SIGKILL of training ends wandb's service too; what it has not written by then is lost (15 s by default)."""
    name = "x_transaction_log_flush_interval"
    return {name: 1.0} if name in wandb.Settings.model_fields else {}


def _asked_mode(mode: WandbMode) -> WandbMode:
    """`auto` leaves the word to WANDB_MODE, as every W&B user expects."""
    modes: dict[str, WandbMode] = {"online": "online", "offline": "offline", "disabled": "disabled"}
    return modes.get(os.environ.get("WANDB_MODE", ""), "auto") if mode == "auto" else mode


def _how_to_sync(where: Path) -> str:
    return f"To upload it later: wandb sync {where}"


def _reason(error: Exception) -> str:
    """The innermost cause in one line; wandb puts it last."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1].removeprefix("while retrying: ")[:200].rstrip(".")


def _stored_id(folder: Path) -> str | None:
    file = folder / RUN_ID_FILE
    return file.read_text(encoding="utf-8").strip() or None if file.exists() else None


def _store_id(folder: Path, run_id: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{RUN_ID_FILE}.{os.getpid()}.tmp"
    temporary.write_text(f"{run_id}\n", encoding="utf-8")
    temporary.replace(folder / RUN_ID_FILE)
