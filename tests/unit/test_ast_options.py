"""Options and presets of AST."""

import subprocess
import sys
from dataclasses import asdict, replace
from typing import Any

import pytest
from pydantic import ValidationError

from detectors.ast.detector import WEIGHT_DECAY, resolved, settings_of
from detectors.ast.networks import ENCODING, KERNELS, RESIDUAL_BLOCKS, SLOPE
from detectors.ast.options import BLOCKS, PRESETS, AstOptions, Preset
from detectors.backbones import ARCHITECTURES


def test_options_leave_torch_and_cv2_alone() -> None:
    script = "import sys, detectors.ast.options; print([m for m in ('torch', 'cv2', 'sklearn') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_the_paper_preset_is_the_released_configuration() -> None:
    """Section 6a of the specification."""
    assert resolved(AstOptions(preset="paper")) == Preset(
        backbone="efficientnet_b5",
        blocks=(35,),
        resolution=768,
        stride=32,
        standardise=False,
        teacher_width=64,
        student_width=1024,
        clamp=1.9,
        teacher_epochs=3 * 24,
        student_epochs=3 * 24,
        steps=1,
        batch_size=8,
        learning_rate=2e-4,
        cosine=False,
        clip=None,
        mixed_precision=False,
    )
    assert (WEIGHT_DECAY, KERNELS, ENCODING, RESIDUAL_BLOCKS, SLOPE) == (1e-5, (3, 3, 3, 5), 32, 4, 0.01)
    settings = settings_of(AstOptions(preset="paper", mode="rgb+depth"), PRESETS["paper"], None)
    assert (settings.grid, settings.channels, settings.positional_encoding, settings.student, settings.smoothing) == (24, 368, True, "cnn", 0)


@pytest.mark.parametrize("blocks", [(), (6, 21), (-1,), (14, 6), (6, 6)])
def test_blocks_that_the_backbone_has_not_are_a_mistake_in_the_configuration(blocks: tuple[int, ...]) -> None:
    with pytest.raises(ValidationError, match=r"blocks\n.*expected one or more of 0 to 20, ascending, of efficientnet_lite2"):
        AstOptions(blocks=blocks)
    with pytest.raises(ValidationError, match="blocks"):
        AstOptions(preset="paper", blocks=(39,))
    AstOptions(backbone="efficientnet_b5", blocks=(6, 38))


def test_the_options_know_how_many_blocks_there_are() -> None:
    for name, architecture in ARCHITECTURES.items():
        assert sum(stage.repeats for stage in architecture.stages) == BLOCKS[name]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("backbone", "efficientnet_lite2"),
        ("blocks", (6, 14)),
        ("resolution", 320),
        ("stride", 8),
        ("standardise", True),
        ("teacher_width", 48),
        ("student_width", 96),
        ("clamp", 3.0),
        ("teacher_epochs", 240),
        ("student_epochs", 7),
        ("batch_size", 3),
        ("learning_rate", 0.01),
        ("mixed_precision", True),
    ],
)
def test_an_option_outweighs_the_preset_and_changes_nothing_else(option: str, value: Any) -> None:
    paper = resolved(AstOptions(preset="paper"))
    assert getattr(paper, option) != value
    assert resolved(AstOptions.model_validate({"preset": "paper", option: value})) == replace(paper, **{option: value})


@pytest.mark.parametrize(
    "wrong",
    [
        {"mode": "xyz"},
        {"resolution": 100},
        {"resolution": 0},
        {"stride": 4},
        {"clamp": 0},
        {"score": "median"},
        {"smoothing": -1},
        {"feature_cache": 0},
        {"learning_rate": 1.0},
        {"teacher_width": 0},
        {"student": "teacher"},
        {"epochs": 3},
    ],
)
def test_options_that_cannot_work_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        AstOptions.model_validate(wrong)


def test_presets_are_complete_and_their_options_are_known() -> None:
    for preset in PRESETS.values():
        internal = {"steps", "cosine", "clip"}
        assert asdict(preset).keys() - internal <= AstOptions.model_fields.keys()
