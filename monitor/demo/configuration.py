"""The monitor.toml of the demo."""

import socket
from pathlib import Path

from monitor.demo import camera, microphones

SINK = "alerts"

CONFIGURATION = """\
# What `monitor demo` ran with. Every demo in this folder writes it anew: copy it before you change it.
#
# For your own plant: the urls are those of your broker (the demo's is gone), topics are where your cameras and microphones
# publish, and the detectors are trained anew on a hundred or more of your good pictures, and of your good clips of {segment:g} s or longer:
#
#   monitor train {flange} --data GOOD_PICTURES --layout folder --config THIS_FILE
#   monitor train {pump} --data GOOD_CLIPS --layout folder --config THIS_FILE
#   monitor check --online --config THIS_FILE
#   monitor run --config THIS_FILE

[daemon]
site = "demo"
state = "state.db"
grace = 10.0

[store]
path = "models"

[api]
port = {api_port}                            # GET /live, /ready, /metrics

[sources.{camera}]
kind = "mqtt"
url = "{url}"
topics = ["demo/{{stream}}/image"]         # {{stream}} names the camera
client_id = "monitor-demo-camera"

[sources.{microphones}]
kind = "mqtt"
url = "{url}"
topics = ["demo/{{stream}}/sound"]         # {{stream}} names the pump; its sound comes in chunks of {chunk:g} s
client_id = "monitor-demo-microphones"
recording_timeout = 60.0                 # a pump of which nothing comes for so many seconds has stopped, and what is open is scored

[detectors.{flange}]
kind = "autoencoder"
inputs = ["{camera}"]
false_alarm_probability = 0.01
# small, so that it is trained within two minutes on two cores; without these options it takes 3 to 5, and sees finer faults
options = {{ variant = "baseline", score = "l1_topk", resolution = 64, border = 3, smoothing = 1.0, epochs = 7, batch_size = 4 }}

[detectors.{pump}]
kind = "aegan_ad"
inputs = ["{microphones}"]
false_alarm_probability = 0.01
# small, so that it is trained within a minute on two cores; without these options it takes longer, and hears finer faults
options = {{ machine = "dcase2020_pump", width = 8, epochs = 4, batch_size = 4 }}

[sinks.{sink}]
kind = "mqtt"
url = "{url}"
topic = "monitor/alerts/{{stream}}"
events = ["alert", "score"]             # a plant wants "alert"; the demo also counts what was found to be good

[dead_letter]
kind = "folder"
path = "dead_letter"
"""


def write_configuration(file: Path, url: str) -> None:
    """For the broker at `url`, and a port of the [api] that is free now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    names = {"flange": camera.DETECTOR, "camera": camera.SOURCE, "pump": microphones.DETECTOR, "microphones": microphones.SOURCE, "sink": SINK}
    lengths = {"segment": microphones.SEGMENT, "chunk": microphones.CHUNK}
    file.write_text(CONFIGURATION.format(url=url, api_port=port, **names, **lengths))
