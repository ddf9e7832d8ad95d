"""Settings -> the parts of the plant's topology that hang together, each run by a pipeline of its own."""

from collections.abc import Mapping
from dataclasses import dataclass

from monitor.ports import SinkOptions, SourceOptions
from monitor.settings import DetectorSettings, Settings, SinkSettings


@dataclass(frozen=True, kw_only=True)
class PipelineSettings:
    """Sources, the detectors that read them, and the sinks that take from those. Equal settings need no rebuilding."""

    sources: Mapping[str, SourceOptions]
    detectors: Mapping[str, DetectorSettings]
    sinks: Mapping[str, SinkSettings]
    dead_letter: SinkOptions

    @property
    def name(self) -> str:
        """Of its detectors, for logs."""
        return "+".join(sorted(self.detectors))


def pipelines(settings: Settings) -> list[PipelineSettings]:
    """The connected parts of the graph of sources and detectors."""
    parts: list[tuple[set[str], set[str]]] = []  # (sources, detectors)
    for name, detector in settings.detectors.items():
        sources, detectors = set(detector.inputs), {name}
        apart = []
        for part in parts:
            if part[0] & sources:
                sources |= part[0]
                detectors |= part[1]
            else:
                apart.append(part)
        parts = [*apart, (sources, detectors)]
    return [
        PipelineSettings(
            sources={name: options for name, options in settings.sources.items() if name in sources},
            detectors={name: detector for name, detector in settings.detectors.items() if name in detectors},
            sinks={name: sink for name, sink in settings.sinks.items() if sink.takes_from(detectors) or "health" in sink.events},
            dead_letter=settings.dead_letter,
        )
        for sources, detectors in parts
    ]
