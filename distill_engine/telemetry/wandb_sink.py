"""Weights & Biases: the same records on a dashboard, online or on disk for later."""

from __future__ import annotations

import json
import os
import secrets
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from distill_engine.cluster.files import replace_text
from distill_engine.telemetry.config import WandbMode, WandbSection
from distill_engine.telemetry.sinks import CloseStatus, Record
from distill_engine.telemetry.wandb_log import (
    SAMPLES_TABLE,
    Server,
    await_own_folder,
    before,
    is_row,
    lacking_on_disk,
    lacking_rows,
    mark_as_uploaded,
)

RUN_ID_FILE = "wandb_run_id"


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

    def restore(self, mode: WandbMode) -> None:
        """Write the id of the newest checkpoint back if its file is gone, or a new one where there is none and W&B is
        wanted; to be called before anything is saved."""
        if _stored_id(self._folder) is None:
            self._restore()
        if _stored_id(self._folder) is None and _asked_mode(mode) != "disabled":
            with suppress(OSError):  # said by the sink, which meets it too
                _store_id(self._folder, secrets.token_hex(4))

    def _restore(self) -> None:
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

    Before its first record, and whenever W&B's service has died and is started again, it gives W&B what that lacks of
    `history`, the records so far: a kill of the job takes the service along with what it had not passed on.

    The key is left to wandb (WANDB_API_KEY, netrc, `wandb login`); it is not read, stored or passed on here.
    """

    def __init__(
        self,
        run_folder: Path | str,
        name: str,
        options: WandbSection,
        config: Mapping[str, Any],
        say: Callable[[str], None],
        *,
        history: Callable[[], list[Record]] = list,
        run_id: str | None = None,
        init_timeout_seconds: float = 20.0,
        finish_timeout_seconds: float = 60.0,
    ) -> None:
        self._folder = Path(run_folder)
        self._say = say
        self._init_timeout = init_timeout_seconds
        self._finish_timeout = finish_timeout_seconds
        self._history = history
        self._run: Any = None
        self._offline, self._behind = False, True
        self._mode = _asked_mode(options.mode)
        self.run_id: str | None = None
        self.works = False
        self.caught_up = 0  # records that W&B lacked and was given
        if self._mode == "disabled":
            return
        try:
            self.run_id = run_id or _stored_id(self._folder) or secrets.token_hex(4)
            _store_id(self._folder, self.run_id)
            self._arguments = self._start_arguments(name, options, config)
            self._run = self._start(self._mode, self._arguments)
            self.works = True
        except Exception as error:
            say(
                f"W&B: not available, this run is not logged there ({_reason(error)}). metrics.jsonl has everything; "
                f"to pass it on later: {self._how_to_catch_up()}"
            )

    def write(self, record: Record) -> None:
        """Logs the values over `step`, and rows as a table. A record without either is passed over.

        Raises what W&B raises; the next call then begins with a new service.
        """
        if not self.works or not is_row(record):
            return
        try:
            run = self._running()
            if self._behind:
                self._catch_up(run, before(self._history(), record))
            _log(run, record)
        except Exception:
            self._abandon()
            raise

    def close(self, status: CloseStatus) -> None:
        """Uploads what is left for a bounded time; what remains stays on disk, and a line says so.

        A run that ends by itself is completed if the service has died or its disk has been full.
        """
        if not self.works:
            return
        self.works, problem = False, "its service ended early"
        for _ in range(2 if status == "finished" else 1):
            try:
                if self._behind and status != "stopped":  # no time to begin anew: the next start will
                    self._catch_up(self._running(), self._history())
                if self._run is None or not self._finish(status) or not (self._offline and self._lacking_on_disk()):
                    break
                problem = "its log on disk is not complete"
            except Exception as error:
                problem = _reason(error)
                self._abandon()
            self._behind = True
        if self._behind and (lacking := len(self._lacking_on_disk())):
            self._say(f"W&B lacks {lacking} records ({problem}). To pass them on: {self._how_to_catch_up()}")

    # ---- the service ---------------------------------------------------------------------------------------------

    def _running(self) -> Any:
        self._run = self._run or self._start(self._mode, self._arguments)
        return self._run

    def _finish(self, status: CloseStatus) -> bool:
        """Whether everything went where it should; raises what W&B raises."""
        run, self._run = self._run, None
        try:
            run.finish(exit_code=1 if status == "failed" else 0)
            if not self._offline:
                mark_as_uploaded(Path(run.settings.sync_dir), run.url)
            return True
        except TimeoutError:
            where = Path(run.settings.sync_dir)
            self._say(f"W&B: the upload did not end within {self._finish_timeout:.0f} s. {_how_to_sync(where)}")
            return False
        finally:
            _wandb().teardown()

    def _abandon(self) -> None:
        """Of a service that failed nothing is expected any more."""
        self._run, self._behind = None, True
        with suppress(Exception):
            _wandb().teardown()

    def _catch_up(self, run: Any, records: Sequence[Record]) -> None:
        server = None if self._offline else Server(run.url, run.starting_step)
        lacking = lacking_rows(records, self._folder, str(self.run_id), server)
        for record in lacking:
            _log(run, record)
        self._behind, self.caught_up = False, self.caught_up + len(lacking)
        if lacking:
            steps = f"{lacking[0].step} to {lacking[-1].step}"
            self._say(f"W&B lacked {len(lacking)} records of steps {steps}: given from metrics.jsonl")

    def _lacking_on_disk(self) -> list[Record]:
        return lacking_on_disk(self._history(), self._folder, str(self.run_id))

    def _how_to_catch_up(self) -> str:
        return f"distill wandb-sync {shlex.quote(str(self._folder))}"

    def _start_arguments(self, name: str, options: WandbSection, config: Mapping[str, Any]) -> dict[str, Any]:
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
                    run = self._init(wandb, "online", arguments)
                    self._say(f"W&B: {run.url}")
                    return run
                reason = "no API key found"
            except Exception as error:
                reason = _reason(error)
                # wandb's service still holds the id of the failed attempt and would refuse it.
                wandb.teardown()
            where = self._folder / "wandb" / f"offline-run-*-{self.run_id}"
            self._say(f"W&B: {reason}; this run is logged offline. {_how_to_sync(where)}")
        return self._init(wandb, "offline", arguments)

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
        await_own_folder(self._folder, str(self.run_id))
        run = wandb.init(mode=mode, settings=settings, **arguments)
        self._offline = mode == "offline"
        run.define_metric("step")
        run.define_metric("*", step_metric="step")
        return run


def _log(run: Any, record: Record) -> None:
    content: dict[str, Any] = {"step": record.step, **record.values}
    if record.rows:
        columns = list(record.rows[0])
        content[SAMPLES_TABLE] = _wandb().Table(columns, [[row[name] for name in columns] for row in record.rows])
    run.log(content)


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
    replace_text(folder / RUN_ID_FILE, f"{run_id}\n")
