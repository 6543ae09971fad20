"""Which data a `make run` reads, and whether Airflow will notice it by itself."""

import os

import pytest
import yaml

from refit import pipeline as pipelines
from refit.config import ConfigError
from refit.data import arrival
from refit.embedded import data
from refit.embedded.settings import Embedded


@pytest.fixture
def place(tmp_path):
    return Embedded.from_env({"REFIT_HOME": str(tmp_path / "home")})


def pipeline(tmp_path, name="mine", **more):
    body = {"dataset": {"source": "inbox/mine", "classes": ["a"]}, "toolkit": "cpu", **more}
    file = tmp_path / f"{name}.yaml"
    file.write_text(yaml.safe_dump(body))
    return pipelines.load(file)


def fill(folder):
    folder.mkdir(parents=True)
    (folder / "a.jpg").write_bytes(b"x")
    return folder


def test_new_data_in_the_inbox_arrives_by_itself(tmp_path, place):
    mine = pipeline(tmp_path, schedule="on_arrival")
    inbox = fill(tmp_path / "home" / "data" / "inbox" / "mine")
    assert data.source(place, mine, None) == data.Source(inbox, {}, arrives=True)
    listing = arrival.listing(inbox)
    arrival.record_taken(place.refit.workspace / "mine", listing, fingerprint="f", run="r", outcome="taken")
    assert not data.source(place, mine, None).arrives


def test_without_a_schedule_nothing_arrives(tmp_path, place):
    fill(tmp_path / "home" / "data" / "inbox" / "mine")
    assert not data.source(place, pipeline(tmp_path), None).arrives


def test_the_users_folder_is_read_in_place(tmp_path, place):
    folder = fill(tmp_path / "photos")
    mine = pipeline(tmp_path, schedule="on_arrival")
    found = data.source(place, mine, str(folder))
    assert found == data.Source(folder, {"dataset_source": str(folder)}, arrives=False)
    assert not (tmp_path / "home" / "data").exists()


def test_a_relative_folder_is_taken_from_where_the_user_is(tmp_path, place, monkeypatch):
    fill(tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    assert data.source(place, pipeline(tmp_path), "photos").folder == tmp_path / "photos"


def test_no_data(tmp_path, place):
    with pytest.raises(data.DataError, match="no such folder"):
        data.source(place, pipeline(tmp_path), str(tmp_path / "nowhere"))
    with pytest.raises(data.DataError, match=r"holds no data: .*DATA=path"):
        data.source(place, pipeline(tmp_path), None)


def test_who_starts_the_runtime_may_read_what_they_name(tmp_path, place):
    folder = fill(tmp_path / "photos")
    mine = pipeline(tmp_path, dataset={"source": str(folder), "classes": ["a"]})
    with pytest.raises(ConfigError):
        data.source(place, mine, None)
    wider = data.allow(place, folder)
    assert wider.refit.data_roots == (*place.refit.data_roots, folder)
    assert data.source(wider, mine, None).folder == folder
    assert data.allow(wider, folder, place.refit.data_roots[0] / "inbox") == wider


def test_the_demos_inbox_is_left_alone_once_it_has_data(tmp_path, place):
    demo = pipeline(tmp_path, "demo", dataset={"source": "inbox/demo", "classes": ["a"], "arrival": {"marker": "_OK"}})
    inbox = fill(tmp_path / "home" / "data" / "inbox" / "demo")
    found = data.source(place, demo, None)
    assert sorted(os.listdir(inbox)) == ["_OK", "a.jpg"], "a call that was killed before the marker is made good"
    assert found.folder == inbox
