"""deploy/schema is what the types say, and what sinks send satisfies it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from jsonschema import Draft202012Validator, ValidationError

from connectors.cloudevents import encode
from monitor.events import SCHEMAS, schema
from monitor.types import Segment
from unit.test_judge import judge, sound_alert, verdict

FOLDER = Path(__file__).parents[2] / "deploy" / "schema"


def validator(name: str) -> Draft202012Validator:
    return Draft202012Validator(json.loads((FOLDER / name).read_text()))


def test_the_files_are_what_the_types_say():
    assert {file.name: file.read_text() for file in FOLDER.iterdir()} == {name: schema(event) for name, event in SCHEMAS.items()}


def test_an_alert_as_sent_satisfies_its_schema():
    score_map = np.zeros((40, 60), np.float32)
    score_map[3:9, 3:9] = 20
    sent = encode(judge().alert(verdict(120.0, score_map)), max_bytes=1_000_000, report=lambda *_, **__: None)

    validator("monitor.alert.v1.json").validate(json.loads(sent))


@pytest.mark.parametrize("segment", [None, Segment(recording="r", index=2, start=10.0, end=15.0, partial=True)])
def test_an_alert_of_sound_as_sent_satisfies_it_too(segment):
    score_map = np.zeros((4, 50), np.float32)
    score_map[1, 10:13] = 20
    sent = json.loads(encode(sound_alert(score_map, segment), max_bytes=1_000_000, report=lambda *_, **__: None))

    validator("monitor.alert.v1.json").validate(sent)
    assert len(sent["data"]["map"]["axes"]["hertz"]) == sent["data"]["map"]["height"] + 1


def test_a_map_of_sound_that_is_halved_keeps_its_axes():
    edges = np.linspace(8000, 0, 130).tolist()
    event = replace(sound_alert(np.zeros((4, 50), np.float32)), map=np.random.default_rng(0).random((129, 1875)).astype(np.float32))
    event = replace(event, axes={"start": 0.0, "end": 60.0, "hertz": edges})
    sent = json.loads(encode(event, max_bytes=1_000_000, report=lambda *_, **__: None))["data"]["map"]

    assert (sent["height"], sent["width"]) == (33, 469)
    hertz = sent["axes"]["hertz"]
    assert len(hertz) == 34
    assert hertz[:-1] == edges[:-1:4]
    assert hertz[-1] == 0


def test_an_alert_whose_map_was_dropped_satisfies_it_too():
    noise = np.random.default_rng(0).random((400, 400)).astype(np.float32)
    event = judge().alert(verdict(120.0, noise))
    sent = encode(event, max_bytes=20_000, report=lambda *_, **__: None)

    validator("monitor.alert.v1.json").validate(json.loads(sent))


@pytest.mark.parametrize("n", [99, 30])
def test_a_score_as_sent_satisfies_its_schema(n):
    sent = json.loads(encode(judge(n=n).score(verdict(5.0, n=n)), max_bytes=1_000_000, report=lambda *_, **__: None))
    validator("monitor.score.v1.json").validate(sent)

    with pytest.raises(ValidationError):
        validator("monitor.alert.v1.json").validate(sent)
