"""The embedded Airflow: its configuration, its secrets, its database.

Everything is in one airflow.cfg below AIRFLOW_HOME that only the owner may read, written anew at each start: secrets
never stand in the environment, which every stage command would inherit. `airflow ...` with AIRFLOW_HOME set uses the
same installation.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from refit.embedded.settings import HOST, Embedded, secret, write_private
from refit.files import sha256, write_text

USER = "admin"
LOCK = "requirements.txt"
# operators.bundle.config() makes the same value; here it is written out because `refit` does not import `operators`
# (a test in the airflow environment compares the two).
BUNDLE = "refit"
BUNDLE_CLASS = "operators.bundle.RefitBundle"
REFRESH_SECONDS = 5


class AirflowError(RuntimeError):
    """Airflow could not be prepared; the message says what failed and where its output is."""


def configuration(place: Embedded) -> dict[str, dict[str, str | int | float | bool]]:
    """Sections and options of airflow.cfg, secrets included. Reasons stand beside what differs from the defaults."""
    home = place.airflow
    bundle = {"path": str(place.refit.repository), "refresh_interval": REFRESH_SECONDS}
    return {
        "core": {
            "executor": "LocalExecutor",
            "parallelism": 4,  # 32 by default, at 150 MB each
            "load_examples": False,
            "dags_are_paused_at_creation": False,  # a new pipeline file should do what it says
            "plugins_folder": str(place.refit.repository / "plugins"),
            # Airflow's own asks the name server for the full name: seconds at every start on a laptop without a network
            "hostname_callable": "socket.gethostname",
            "fernet_key": secret(home / "secrets" / "fernet-key", fernet_key),
            "simple_auth_manager_users": f"{USER}:admin",
            "simple_auth_manager_passwords_file": str(home / "passwords.json"),
            "execution_api_server_url": f"{place.airflow_url}/execution/",
        },
        "api": {
            "host": HOST,
            "port": place.ports["AIRFLOW_PORT"],
            "base_url": place.airflow_url,
            "workers": 1,
            "secret_key": secret(home / "secrets" / "api-key"),
        },
        "api_auth": {"jwt_secret": secret(home / "secrets" / "jwt-secret")},
        # Seconds that one process waits while another writes; after 5 by default a scheduler on a busy disk has ended
        "database": {"sql_alchemy_conn": f"sqlite:///{home / 'airflow.db'}?timeout=60"},
        "logging": {
            "base_log_folder": str(home / "logs"),
            "dag_processor_child_process_log_directory": str(home / "logs" / "dag_processor"),
            "uvicorn_logging_level": "WARNING",  # or a line for every request of an open browser tab
            "colored_console_log": False,
        },
        "scheduler": {
            # 1 s by default, which is the larger part of what Airflow adds to a stage (benchmarks)
            "scheduler_idle_sleep_time": 0.3,
            # A worker that was killed is noticed after so long; 300 s by default
            "task_instance_heartbeat_timeout": 60,
            "enable_health_check": False,
        },
        # How often a task's supervisor looks whether the task's process has ended; 5 s by default. A task that deferred
        # and is resumed before its first end was seen is taken for killed, and tried again.
        "workers": {"min_heartbeat_interval": 1},
        # A waiting arrival is one trigger; 1,000 by default, and what is above waits unseen (benchmarks/arrivals.py)
        "triggerer": {"capacity": 3000},
        "dag_processor": {
            "dag_bundle_config_list": json.dumps([{"name": BUNDLE, "classpath": BUNDLE_CLASS, "kwargs": bundle}]),
            "bundle_refresh_check_interval": 2,
            # A changed pipeline file does not change the DAG file, so that is parsed again after so many seconds
            "min_file_process_interval": 10,
            "parsing_processes": 1,
        },
    }


def fernet_key() -> str:
    """A new key in Fernet's form: 32 random bytes, URL-safe base64."""
    return base64.urlsafe_b64encode(os.urandom(32)).decode()


def as_cfg(sections: Mapping[str, Mapping[str, object]]) -> str:
    """airflow.cfg's text; "%" is its interpolation sign, so it is doubled."""
    lines = ["# Written by refit.embedded.airflow at each start; changes are lost."]
    for section, options in sections.items():
        lines += ["", f"[{section}]", *(f"{k} = {str(v).replace('%', '%%')}" for k, v in options.items())]
    return "\n".join(lines) + "\n"


def password(place: Embedded) -> str:
    """The login's password, made once."""
    return secret(place.airflow / "secrets" / "password", lambda: base64.b32encode(os.urandom(10)).decode().lower())


def prepare(place: Embedded) -> None:
    """Write the configuration and bring the database up to date; the second takes seconds, and only when needed.

    Raises:
        AirflowError: the database cannot be made or migrated.
    """
    home = place.airflow
    home.mkdir(parents=True, exist_ok=True)
    write_private(home / "airflow.cfg", as_cfg(configuration(place)))
    write_private(home / "passwords.json", json.dumps({USER: password(place)}) + "\n")
    stamp, now = home / "database.stamp", sha256(place.refit.repository / LOCK)
    if (home / "airflow.db").exists() and stamp.exists() and stamp.read_text().strip() == now:
        return
    log = place.logs / "airflow-migrate.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "wb") as out:
        done = subprocess.run(
            [place.python("airflow"), "-m", "airflow", "db", "migrate"],
            check=False,
            env=place.environment(),
            cwd=place.refit.repository,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    if done.returncode:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-8:])
        raise AirflowError(
            f"`airflow db migrate` failed ({log}):\n{tail}\nwhen the database is from a newer version, remove {home}"
        )
    write_text(stamp, now + "\n")


def pools(place: Embedded) -> list[dict[str, object]]:
    """What `operators.pools` asks for, as bodies of the REST API. The question imports no Airflow.

    Raises:
        AirflowError: operators.pools cannot be asked.
    """
    question = (
        "import json; from operators.pools import required;"
        "print(json.dumps([{'name': p.name, 'slots': p.slots, 'description': p.description,"
        " 'include_deferred': p.include_deferred} for p in required()]))"
    )
    done = subprocess.run(
        [place.python("airflow"), "-c", question],
        check=False,
        env=place.environment(),
        cwd=Path(place.refit.repository),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise AirflowError(f"operators/pools.py cannot be read:\n{done.stderr.strip()}")
    answer: list[dict[str, object]] = json.loads(done.stdout)
    return answer
