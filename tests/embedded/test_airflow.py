"""The embedded Airflow's configuration."""

import configparser
import os
import stat

import pytest

from refit.embedded import airflow
from refit.embedded.settings import Embedded


@pytest.fixture
def place(tmp_path):
    return Embedded.from_env({"REFIT_HOME": str(tmp_path / "ho%me"), "AIRFLOW_PORT": "18080"})


def read(text):
    parser = configparser.ConfigParser()  # "%" is its interpolation sign, as in Airflow
    parser.read_string(text)
    return parser


def test_the_file_reads_back_as_it_was_meant(place):
    wanted = airflow.configuration(place)
    parser = read(airflow.as_cfg(wanted))
    assert {s: dict(parser[s]) for s in parser.sections()} == {
        section: {k: str(v) for k, v in options.items()} for section, options in wanted.items()
    }
    assert str(place.home) in parser["database"]["sql_alchemy_conn"], "a % in a path survives"


def test_everything_listens_on_and_talks_to_loopback(place):
    made = airflow.configuration(place)
    assert made["api"]["host"] == "127.0.0.1"
    assert made["api"]["base_url"] == "http://127.0.0.1:18080"
    assert made["core"]["execution_api_server_url"] == "http://127.0.0.1:18080/execution/"


def test_secrets_stay_the_same_and_differ_from_each_other(place):
    first, second = airflow.configuration(place), airflow.configuration(place)
    assert first == second
    keys = [first["core"]["fernet_key"], first["api"]["secret_key"], first["api_auth"]["jwt_secret"]]
    keys += [airflow.password(place), place.control_key()]
    assert len(set(keys)) == len(keys)


def test_secrets_are_for_the_owner_only_and_not_in_the_environment(place):
    made = airflow.configuration(place)
    airflow.password(place)
    for file in (place.airflow / "secrets").iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    values = set(place.environment().values()) | set(os.environ.values())
    assert not {made["core"]["fernet_key"], made["api_auth"]["jwt_secret"], airflow.password(place)} & values


def test_each_installation_has_its_own(place, tmp_path):
    other = Embedded.from_env({"REFIT_HOME": str(tmp_path / "other")})
    assert airflow.configuration(place)["core"]["fernet_key"] != airflow.configuration(other)["core"]["fernet_key"]
    assert airflow.password(place) != airflow.password(other)
