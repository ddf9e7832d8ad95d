"""monitor.toml -> Settings: every mistake at once, each with its path."""

from pathlib import Path

import pytest

from monitor.config import load_settings
from monitor.errors import ConfigError
from monitor.topology import pipelines

ROOT = Path(__file__).parents[2]

GOOD = """
[sources.cameras]
kind = "kafka"
bootstrap_servers = "127.0.0.1:9092"
topics = ["press.images"]
group_id = "monitor"

[detectors.bottle]
kind = "autoencoder"
inputs = ["cameras"]

[sinks.alerts]
kind = "folder"
path = "alerts"
"""


def load(tmp_path: Path, text: str, **environ: str):
    file = tmp_path / "monitor.toml"
    file.write_text(text)
    return load_settings(file, environ)


def mistakes(tmp_path: Path, text: str, **environ: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text, **environ)
    return list(caught.value.mistakes)


def test_the_shipped_file_is_valid():
    settings = load_settings(ROOT / "monitor.toml", {})

    assert settings.daemon.site == "press_shop"
    assert settings.store.path == ROOT / "var/models"


def test_relative_paths_are_relative_to_the_file(tmp_path):
    settings = load(tmp_path, GOOD)

    assert settings.daemon.state == tmp_path / "var/state.db"
    assert settings.sinks["alerts"].options.path == tmp_path / "alerts"
    assert settings.dead_letter.path == tmp_path / "var/dead_letter"


def test_ten_mistakes_are_ten_lines(tmp_path):
    found = mistakes(
        tmp_path,
        """
surprise = 1
[daemon]
grace = -1
[store]
pol = 5
[sources.cameras]
kind = "kafka"
bootstrap_servers = "nonsense"
topics = ["press"]
group_id = "monitor"
password = "secret"
[sources.Other]
kind = "folder"
[detectors.bottle]
kind = "autoencoder"
inputs = ["camera"]
false_alarm_probability = 2
options = { varient = "baseline" }
[sinks.alerts]
kind = "pigeon"
""",
    )
    starts = sorted(line.split(": ")[0] for line in found)

    assert starts == [
        "daemon.grace",
        "detectors.bottle.false_alarm_probability",
        "detectors.bottle.inputs",
        "detectors.bottle.options.varient",
        "sinks.alerts.kind",
        "sources.Other",
        "sources.cameras.bootstrap_servers",
        "sources.cameras.password",
        "store.pol",
        "surprise",
    ]
    assert "did you mean poll?" in next(line for line in found if line.startswith("store.pol"))
    assert not any("secret'" in line for line in found)


def test_names_that_lead_nowhere(tmp_path):
    found = mistakes(tmp_path, GOOD.replace('inputs = ["cameras"]', 'inputs = ["camera"]') + '\ninputs = ["bottles"]\n')

    assert "detectors.bottle.inputs: no source is named 'camera'; expected one of cameras" in found
    assert "sinks.alerts.inputs: no detector is named 'bottles'; expected one of bottle" in found


def test_a_source_that_nobody_reads(tmp_path):
    found = mistakes(tmp_path, GOOD + '\n[sources.spare]\nkind = "folder"\npath = "spare"\n')

    assert found == ["sources.spare: no detector reads it; name it in the inputs of one"]


def test_the_environment_goes_over_the_file(tmp_path):
    settings = load(
        tmp_path,
        GOOD,
        MONITOR__SOURCES__CAMERAS__BOOTSTRAP_SERVERS="broker:1234",
        MONITOR__SOURCES__CAMERAS__TOPICS='["a", "b"]',
        MONITOR__DETECTORS__BOTTLE__MAX_BATCH_SIZE="4",
        MONITOR__DETECTORS__BOTTLE__OPTIONS__VARIANT="baseline",
        MONITOR__DAEMON__SITE="works",
        MONITOR_PORT="tcp://10.0.0.1:80",
    )

    assert settings.sources["cameras"].bootstrap_servers == "broker:1234"
    assert settings.sources["cameras"].topics == ("a", "b")
    assert settings.detectors["bottle"].max_batch_size == 4
    assert settings.detectors["bottle"].options.variant == "baseline"
    assert settings.daemon.site == "works"


def test_an_unknown_variable_is_refused(tmp_path):
    assert mistakes(tmp_path, GOOD, MONITOR__DAEMON__SIGHT="works")[0].startswith("daemon.sight: unknown key; did you mean site?")
    assert mistakes(tmp_path, GOOD, MONITOR__SITE="works")[0].startswith("MONITOR__SITE: no such key")
    made = " (this table is not in the file: MONITOR__SOURCES__CAMERS__TOPICS makes it)"
    assert f"sources.camers.kind: missing; it names the class{made}" in mistakes(tmp_path, GOOD, MONITOR__SOURCES__CAMERS__TOPICS="[]")


def test_a_secret_comes_from_the_environment_or_a_file(tmp_path):
    secure = GOOD.replace(
        'group_id = "monitor"', 'group_id = "monitor"\nsecurity_protocol = "SASL_PLAINTEXT"\nsasl_mechanism = "PLAIN"\nusername = "u"'
    )
    by_environment = load(tmp_path, secure, MONITOR__SOURCES__CAMERAS__PASSWORD="[123")
    (tmp_path / "pw").write_text("from file\n")
    by_file = load(tmp_path, secure.replace('username = "u"', 'username = "u"\npassword_file = "pw"'))

    assert by_environment.sources["cameras"].secret("password") == "[123"
    assert by_file.sources["cameras"].secret("password") == "from file"
    assert "[123" not in repr(by_environment)


@pytest.mark.parametrize("text", ["[daemon", 'daemon = 1\nsources = "x"'])
def test_what_is_not_even_tables(tmp_path, text):
    assert mistakes(tmp_path, text)


def test_a_file_that_options_name_must_be_readable(tmp_path):
    secure = GOOD.replace('group_id = "monitor"', 'group_id = "monitor"\nsecurity_protocol = "SSL"\nca_file = "nowhere.pem"')

    assert mistakes(tmp_path, secure) == [f"sources.cameras.ca_file: {tmp_path}/nowhere.pem cannot be read: No such file or directory"]


def test_a_secret_in_the_file_is_found_whatever_names_the_kind(tmp_path):
    text = GOOD.replace('kind = "kafka"', 'password = "inline"', 1)

    assert mistakes(tmp_path, text, MONITOR__SOURCES__CAMERAS__KIND="kafka")[0].startswith("sources.cameras.password: a secret is never")


def test_an_empty_table_is_not_enough(tmp_path):
    assert mistakes(tmp_path, "[sources]\n[detectors]\n") == [
        "sources: expected at least one, [sources.NAME]",
        "detectors: expected at least one, [detectors.NAME]",
    ]


def test_the_state_is_a_file(tmp_path):
    assert mistakes(tmp_path, GOOD + '\n[daemon]\nstate = "postgresql://db/monitor"\n')[0].startswith("daemon.state:")


def test_what_no_release_has_yet_is_unknown(tmp_path):
    assert mistakes(tmp_path, GOOD + "\n[feedback]\n")[0].startswith("feedback: unknown table")
    assert mistakes(tmp_path, GOOD + '\n[api]\ntoken_file = "token"\n')[0].startswith("api.token_file: unknown key")


def test_api_and_tracing_are_off_unless_their_tables_are_written(tmp_path):
    off = load(tmp_path, GOOD)
    assert (off.api, off.tracing) == (None, None)

    on = load(tmp_path, GOOD + "\n[api]\n[tracing]\nsample = 0.1\n", MONITOR__API__PORT="9000")
    assert (on.api.host, on.api.port) == ("127.0.0.1", 9000)
    assert (on.tracing.endpoint, on.tracing.sample) == ("http://127.0.0.1:4318/v1/traces", 0.1)


def test_what_is_wrong_in_api_and_tracing_is_told_together(tmp_path):
    found = mistakes(tmp_path, GOOD + '\n[api]\nport = 70000\n[tracing]\nendpoint = "127.0.0.1:4318"\nsample = 2\n')

    assert [line.partition(": ")[0] for line in found] == ["api.port", "tracing.endpoint", "tracing.sample"]


def test_tracing_without_its_packages_names_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("monitor.settings.find_spec", lambda name: None)

    assert mistakes(tmp_path, GOOD + "\n[tracing]\n") == ["tracing: OpenTelemetry is not installed; pip install 'plant-monitor[tracing]'"]


def test_equal_files_are_equal_settings(tmp_path):
    assert load(tmp_path, GOOD) == load(tmp_path, GOOD)
    assert load(tmp_path, GOOD) != load(tmp_path, GOOD, MONITOR__DETECTORS__BOTTLE__MAX_WAIT="1")


def test_what_only_one_may_have_is_refused_to_the_second(tmp_path):
    mqtt = GOOD.replace('kind = "kafka"\nbootstrap_servers = "127.0.0.1:9092"', 'kind = "mqtt"\nurl = "mqtt://127.0.0.1"\nclient_id = "one"')
    mqtt = (
        mqtt.replace('group_id = "monitor"\n', "") + '[dead_letter]\nkind = "mqtt"\nurl = "mqtt://127.0.0.1:1883"\ntopic = "bad"\nclient_id = "{}"\n'
    )

    assert mistakes(tmp_path, mqtt.format("one")) == [
        "dead_letter: client_id 'one' at 127.0.0.1:1883 is taken by sources.cameras; only one may have it"
    ]
    load(tmp_path, mqtt.format("two"))


@pytest.mark.parametrize(
    ("reads", "writes", "where"),
    [
        ("loop/#", "loop/dead", "loop/dead"),
        ("{stream}/image", "image", None),
        ("plant/{stream}/image", "monitor/dead", None),
    ],
)
def test_what_would_go_round_without_end_is_refused_mqtt(tmp_path, reads, writes, where):
    source = f'[sources.cameras]\nkind = "mqtt"\nurl = "mqtt://127.0.0.1"\nclient_id = "one"\ntopics = ["{reads}"]\n'
    mqtt = source + GOOD[GOOD.index("[detectors") :]
    letters = '[dead_letter]\nkind = "mqtt"\nurl = "mqtt://127.0.0.1:{port}"\ntopic = "{topic}"\n'

    load(tmp_path, mqtt + letters.format(port=1884, topic=writes))
    if where is None:
        load(tmp_path, mqtt + letters.format(port=1883, topic=writes))
    else:
        found = mistakes(tmp_path, mqtt + letters.format(port=1883, topic=writes))
        assert found == [f"dead_letter: writes to {where}, which sources.cameras reads: it would go round without end; give another place"]


def test_what_would_go_round_without_end_is_refused_kafka(tmp_path):
    sink = '[sinks.more]\nkind = "kafka"\nbootstrap_servers = "{servers}"\ntopic = "{topic}"\nmaps = {{ topic = "{maps}" }}\n'

    for topic, maps in [("press.images", "maps"), ("alerts", "press.images")]:
        found = mistakes(tmp_path, GOOD + sink.format(servers="other:9092, 127.0.0.1:9092", topic=topic, maps=maps))
        assert found == ["sinks.more: writes to press.images, which sources.cameras reads: it would go round without end; give another place"]
    load(tmp_path, GOOD + sink.format(servers="127.0.0.1:9092", topic="alerts", maps="maps"))
    load(tmp_path, GOOD + sink.format(servers="other:9092", topic="press.images", maps="maps"))


def test_a_sink_for_health_hears_of_every_part_whatever_its_inputs(tmp_path):
    second = GOOD.replace("cameras", "scanners").replace("bottle", "lid").split("[sinks")[0]
    office = '[sinks.office]\nkind = "folder"\npath = "office"\ninputs = ["lid"]\nevents = ["health"]\n'
    settings = load(tmp_path, GOOD.replace("[sinks.alerts]", '[sinks.alerts]\ninputs = ["bottle"]') + second + office)
    sinks = {part.name: {name: sink.takes_from(part.detectors) for name, sink in part.sinks.items()} for part in pipelines(settings)}

    assert sinks == {"bottle": {"alerts": True, "office": False}, "lid": {"office": False}}


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("expect_every = 0", "sources.cameras.expect_every: Input should be greater than 0"),
        ("max_age = -1.0", "sources.cameras.max_age: Input should be greater than 0"),
        ("expected_every = 5.0", "sources.cameras.expected_every: unknown key; did you mean expect_every?"),
    ],
)
def test_times_of_a_source_are_above_nothing(tmp_path, line, told):
    found = mistakes(tmp_path, GOOD.replace('group_id = "monitor"', f'group_id = "monitor"\n{line}'))
    assert [mistake[: len(told)] for mistake in found] == [told]


def test_mistakes_are_in_the_words_of_the_file(tmp_path: Path) -> None:
    text = GOOD.replace('inputs = ["cameras"]', 'inputs = "cameras"')

    assert 'detectors.bottle.inputs: expected a list, ["...", "..."] (it is \'cameras\')' in mistakes(tmp_path, text)


@pytest.mark.parametrize(("options", "told"), [("{ stride = 64 }", "expected 8, 16 or 32 (it is 64)"), ("{ mode = 3 }", "in quotes (it is 3)")])
def test_quotes_are_asked_for_where_the_choices_have_them(tmp_path: Path, options: str, told: str) -> None:
    text = GOOD[: GOOD.index("[detectors")] + f'[detectors.bottle]\nkind = "ast"\ninputs = ["cameras"]\noptions = {options}\n'
    [mistake] = mistakes(tmp_path, text)
    assert mistake.endswith(told)


def test_what_would_go_round_without_end_is_refused_folder(tmp_path):
    text = '[sources.cameras]\nkind = "folder"\npath = "in"\n' + GOOD[GOOD.index("[detectors") :]
    load(tmp_path, text + '[dead_letter]\nkind = "folder"\npath = "inner"\n')
    for more, where in (('path = "in"', "in"), ('path = "dead"\nspill = "in/spill"', "in/spill")):
        found = mistakes(tmp_path, text + f'[dead_letter]\nkind = "folder"\n{more}\n')
        assert found == [f"dead_letter: writes to {tmp_path / where}, which sources.cameras reads: it would go round without end; give another place"]
