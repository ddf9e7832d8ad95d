"""Teacher and student of AST against their specification, layer by layer."""

import math
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from detectors.ast.detector import last_layers, resolved, settings_of
from detectors.ast.model import Pair, Settings
from detectors.ast.networks import ConvolutionalStudent, Coupling, Flow, Subnetwork, positional_encoding, student_loss, teacher_loss
from detectors.ast.options import AstOptions, Mode
from detectors.inference import made_fast
from detectors.training import seeded

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _same_random_numbers() -> Iterator[None]:
    with seeded(CPU, "test_ast_networks"):
        yield


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def settings(**options: Any) -> Settings:
    chosen = AstOptions(preset="paper", **options)
    return settings_of(chosen, resolved(chosen), None)


def tiny(channels: int = 5, *, hidden: int = 6, clamp: float = 1.9, condition: int = 32, spread: float = 0.7) -> Flow:
    """A flow that is no identity: gammas of about `spread`."""
    flow = Flow(channels, hidden, clamp, condition)
    for module in flow.modules():
        if isinstance(module, Subnetwork):
            nn.init.normal_(module.gamma, std=spread)
    return flow


def with_statistics(student: ConvolutionalStudent, channels: int) -> ConvolutionalStudent:
    """With batch norms that are not trivial."""
    for _ in range(3):
        student(torch.randn(4, channels, 6, 6), torch.randn(4, 32, 6, 6))
    return student.eval()


@pytest.mark.parametrize(
    ("mode", "channels", "teacher", "wide", "published_student"),
    [
        ("rgb", 304, 3_251_080, 51_980_680, 81_421_617),
        ("depth", 64, 853_000, 13_640_200, 76_997_697),
        ("rgb+depth", 368, 3_890_568, 62_204_808, 82_601_329),
    ],
)
def test_parameters_of_the_published_settings(mode: Mode, channels: int, teacher: int, wide: int, published_student: int) -> None:
    with torch.device("meta"):
        pair = Pair(settings(mode=mode))
        assert parameters(Pair(settings(mode=mode, teacher_width=1024)).teacher) == wide
        symmetric = Pair(settings(mode=mode, student="flow"))
    assert settings(mode=mode).channels == pair.mean.shape[1] == channels
    assert parameters(pair.teacher) == teacher
    assert parameters(pair.student) + 1 == published_student  # the published one has a scalar that it does not use
    assert parameters(symmetric.student) == teacher
    assert parameters(pair) == parameters(pair.teacher) + parameters(pair.student)


def test_subnetworks_of_the_teacher() -> None:
    with torch.device("meta"):
        flow = Flow(304, 64, 1.9)
    kernels, gammas = [], 0
    for coupling in flow.couplings:
        assert isinstance(coupling, Coupling)
        for name, one, other in (("f1", 152, 152), ("f2", 152, 152)):
            subnetwork = coupling.get_submodule(name)
            assert isinstance(subnetwork, Subnetwork)
            kernel = subnetwork.hidden.kernel_size[0]
            assert subnetwork.hidden.weight.shape == (64, one + 32, kernel, kernel)
            assert subnetwork.out.weight.shape == (2 * other, 64, kernel, kernel)
            for convolution in (subnetwork.hidden, subnetwork.out):
                assert convolution.bias is not None
                assert convolution.padding_mode == "replicate"
                assert convolution.padding == (kernel // 2, kernel // 2)
            gammas += subnetwork.gamma.numel()
        kernels.append(coupling.f1.hidden.kernel_size[0])
    assert kernels == [3, 3, 3, 5]
    assert gammas == 8


def test_halves_of_an_odd_number_of_channels() -> None:
    coupling = Coupling(5, hidden=3, kernel=3, condition=0, clamp=1.9, seed=0)
    assert (coupling.f2.hidden.in_channels, coupling.f2.out.out_channels) == (3, 2 * 2)  # sees x2, moves x1
    assert (coupling.f1.hidden.in_channels, coupling.f1.out.out_channels) == (2, 2 * 3)


@pytest.mark.parametrize(
    ("channels", "seed", "first"),
    [
        (304, 0, [66, 156, 247, 267, 145]),
        (64, 0, [45, 29, 43, 61, 34]),
        (368, 0, [106, 260, 45, 26, 78]),
        (304, 1, [222, 159, 220, 175, 185]),
    ],
)
def test_permutations_are_those_of_the_published_code(channels: int, seed: int, first: list[int]) -> None:
    coupling = Flow(channels, 1, 1.9).couplings[seed]
    assert isinstance(coupling, Coupling)
    assert coupling.permutation[:5].tolist() == first
    assert sorted(coupling.permutation.tolist()) == list(range(channels))


def test_permutations_draw_nothing_from_the_process() -> None:
    before = np.random.get_state()[1]
    Flow(8, 2, 1.9)
    assert np.array_equal(np.random.get_state()[1], before)


def test_permutations_are_saved_and_what_was_saved_counts() -> None:
    flow, x, condition = tiny(), torch.randn(2, 5, 3, 3), torch.randn(2, 32, 3, 3)
    state = flow.state_dict()
    names = [name for name in state if name.endswith("permutation")]
    assert names == [f"couplings.{index}.permutation" for index in range(4)]
    for name in names:
        state[name] = state[name].roll(1)
    other = Flow(5, 6, 1.9)
    other.load_state_dict(state)
    assert torch.equal(other.couplings[0].permutation, state[names[0]])  # type: ignore[arg-type]
    assert not torch.allclose(other(x, condition)[0], flow(x, condition)[0])


def test_output_channel_i_is_input_channel_permutation_of_i() -> None:
    coupling = Coupling(7, hidden=2, kernel=3, condition=0, clamp=1.9, seed=2)  # gammas of 0: nothing else happens
    x = torch.arange(7.0).reshape(1, 7, 1, 1)
    y, _ = coupling(x, torch.zeros(1, 0, 1, 1))
    assert y.flatten().tolist() == np.random.RandomState(2).permutation(7).tolist()


def test_the_flow_begins_as_the_identity_but_for_the_order_of_channels() -> None:
    flow = Flow(12, 4, 1.9)
    x, condition = torch.randn(2, 12, 4, 4), torch.randn(2, 32, 4, 4)
    z, log_determinant = flow(x, condition)
    order = torch.arange(12)
    for coupling in flow.couplings:
        order = order[coupling.permutation]  # type: ignore[index]
    assert torch.equal(z, x[:, order])
    assert torch.equal(log_determinant, torch.zeros(2, 4, 4))
    torch.testing.assert_close(teacher_loss(z, log_determinant, torch.ones(2, 1, 4, 4)), 0.5 * x.square().sum(dim=1))


@pytest.mark.parametrize(("channels", "side"), [(4, 2), (5, 3)])
def test_the_log_determinant_is_that_of_the_jacobian(channels: int, side: int) -> None:
    """One coupling is no function of each position alone: the determinant is of all inputs to all outputs, and the sum over positions."""
    flow = tiny(channels).double()
    x = torch.randn(1, channels, side, side, dtype=torch.float64)
    condition = torch.randn(1, 32, side, side, dtype=torch.float64)

    def outputs(flat: Tensor) -> Tensor:
        z: Tensor = exact(flow, flat.reshape(x.shape), condition)[0]
        return z.flatten()

    jacobian = torch.autograd.functional.jacobian(outputs, x.flatten())  # type: ignore[no-untyped-call]
    _, expected = torch.linalg.slogdet(jacobian)
    assert abs(float(expected)) > 0.1
    torch.testing.assert_close(exact(flow, x, condition)[1].sum(), expected, rtol=1e-8, atol=1e-8)
    single = flow.float()(x.float(), condition.float())[1]
    torch.testing.assert_close(single.sum().double(), expected, rtol=1e-3, atol=1e-3)


def exact(flow: Flow, x: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
    """The flow in fp64, written out as the specification writes it."""
    total = torch.zeros_like(x[:, 0])
    for coupling in flow.couplings:
        assert isinstance(coupling, Coupling)
        x1, x2 = x[:, coupling.permutation].split(coupling.split, dim=1)
        s2, t2 = written_out(coupling.f2, torch.cat((x2, condition), dim=1))
        a2 = coupling.clamp * 0.636 * torch.atan(s2 / coupling.clamp)
        y1 = torch.exp(a2) * x1 + t2
        s1, t1 = written_out(coupling.f1, torch.cat((y1, condition), dim=1))
        a1 = coupling.clamp * 0.636 * torch.atan(s1 / coupling.clamp)
        x = torch.cat((y1, torch.exp(a1) * x2 + t1), dim=1)
        total = total + a1.sum(dim=1) + a2.sum(dim=1)
    return x, total


def written_out(subnetwork: Subnetwork, x: Tensor) -> tuple[Tensor, Tensor]:
    for index, layer in enumerate((subnetwork.hidden, subnetwork.out)):
        pad = layer.kernel_size[0] // 2
        x = functional.conv2d(functional.pad(x, (pad,) * 4, mode="replicate"), layer.weight, layer.bias)
        if index == 0:
            x = functional.relu(x)
    s, t = (x * subnetwork.gamma).chunk(2, dim=1)
    return s, t


def test_the_flow_is_as_specified() -> None:
    flow, x, condition = tiny(9), torch.randn(2, 9, 5, 5), torch.randn(2, 32, 5, 5)
    z, log_determinant = flow(x, condition)
    expected, expected_log = exact(flow, x, condition)
    torch.testing.assert_close(z, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(log_determinant, expected_log, rtol=1e-4, atol=1e-4)
    assert z.std() > 0.5
    assert log_determinant.abs().max() > 0.1


def test_scales_are_bounded_by_the_clamp() -> None:
    coupling = Coupling(4, hidden=4, kernel=3, condition=0, clamp=1.9, seed=0)
    for subnetwork in (coupling.f1, coupling.f2):
        nn.init.constant_(subnetwork.gamma, 1e8)
    _, log_determinant = coupling(torch.randn(8, 4, 6, 6), torch.zeros(8, 0, 6, 6))
    assert log_determinant.abs().max() <= 4 * 1.9 * 0.636 * math.pi / 2 + 1e-4
    assert log_determinant.abs().max() > 1.9


def test_outputs_are_clipped_and_the_log_determinant_is_not() -> None:
    coupling = Coupling(4, hidden=4, kernel=3, condition=0, clamp=1.9, seed=0)
    for subnetwork in (coupling.f1, coupling.f2):
        nn.init.constant_(subnetwork.gamma, 1.0)
    x = torch.randn(1, 4, 3, 3) * 1e7
    y, log_determinant = coupling(x, torch.zeros(1, 0, 3, 3))
    assert y.abs().max() == 1e6
    assert log_determinant.abs().min() > 0


@pytest.mark.parametrize("grid", [3, 24])
def test_positional_encoding(grid: int) -> None:
    encoding = positional_encoding(grid)
    assert encoding.shape == (1, 32, grid, grid)
    assert encoding.dtype == torch.float32
    for row, column in ((0, 0), (0, grid - 1), (grid - 1, 0), (1, 2)):
        for half, position in ((0, column), (16, row)):
            for k in range(0, 16, 2):
                angle = position * math.exp(-k * math.log(1e4) / 16)
                assert float(encoding[0, half + k, row, column]) == pytest.approx(math.sin(angle), abs=1e-5)
                assert float(encoding[0, half + k + 1, row, column]) == pytest.approx(math.cos(angle), abs=1e-5)


def test_losses_are_normalised_as_published() -> None:
    """The teacher's sums over channels, the student's is their mean; a soft mask weighs squares, it is not squared itself."""
    z, repeated, log_determinant = torch.randn(2, 6, 3, 3), torch.randn(2, 6, 3, 3), torch.randn(2, 3, 3)
    mask = torch.tensor([0.0, 0.25, 1.0]).expand(2, 1, 3, 3)
    one = mask[:, 0]
    torch.testing.assert_close(teacher_loss(z, log_determinant, mask), one * (0.5 * (z**2).sum(1) - log_determinant))
    torch.testing.assert_close(student_loss(z, repeated, mask), one * ((z - repeated) ** 2).mean(1))
    assert torch.equal(student_loss(z, repeated, mask)[..., 0], torch.zeros(2, 3))


def test_what_is_learnt_is_the_mean_over_all_positions_not_over_the_foreground() -> None:
    pair = Pair(settings(mode="depth", resolution=64, student_width=4, teacher_width=4)).eval()
    features, mask = torch.randn(3, 64, 2, 2), torch.zeros(3, 1, 2, 2)
    mask[:, :, 0, 0] = 1
    with torch.no_grad():
        likelihood = pair.likelihood(features, mask)
        distances, likelihoods = pair.distances(features, mask)
    for losses in (likelihood, distances):
        assert losses.shape == (3, 2, 2)
        torch.testing.assert_close(losses.mean(), losses[:, 0, 0].mean() / 4)
    torch.testing.assert_close(likelihoods, likelihood)


def test_the_student_leaves_the_teacher_alone() -> None:
    pair = Pair(settings(mode="depth", resolution=64, student_width=4, teacher_width=4))
    distances, _ = pair.distances(torch.randn(3, 64, 2, 2), torch.ones(3, 1, 2, 2))
    distances.mean().backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is None for parameter in pair.teacher.parameters())
    assert all(parameter.grad is not None for parameter in pair.student.parameters())


def test_both_networks_see_standardised_features_and_the_same_encoding() -> None:
    pair = Pair(settings(mode="depth", resolution=96, student_width=4, teacher_width=4)).eval()
    features = torch.randn(2, 64, 3, 3)
    pair.mean.fill_(2.0)
    pair.deviation.fill_(4.0)
    seen: list[tuple[Tensor, Tensor]] = []
    for network in (pair.teacher, pair.student):
        network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    pair.distances(features, torch.ones(2, 1, 3, 3))
    assert len(seen) == 2
    for x, condition in seen:
        torch.testing.assert_close(x, (features - 2) / 4)
        assert torch.equal(condition, positional_encoding(3).expand(2, -1, -1, -1))


def test_mean_and_deviation_are_of_the_foreground() -> None:
    pair = Pair(settings(mode="depth", resolution=64, student_width=4, teacher_width=4))
    features, mask = torch.randn(5, 64, 2, 2) * 3 + 1, torch.zeros(5, 1, 2, 2)
    mask[:, :, 0] = 1
    features[:, :, 1] = 1e3
    features[:, 7] = 0.25  # constant
    pair.standardise_by(features, mask)
    inside = features[:, :, 0].permute(1, 0, 2).flatten(1)
    torch.testing.assert_close(pair.mean.flatten(), inside.mean(dim=1))
    expected = inside.std(dim=1, correction=0)
    expected[7] = 1
    torch.testing.assert_close(pair.deviation.flatten(), expected)


def test_the_student_is_as_specified() -> None:
    """Encoding first; conv, batch norm, LeakyReLU 0.01 twice, then + input; nothing after the last convolution."""
    student = with_statistics(ConvolutionalStudent(3, 8), 3)
    x, condition = torch.randn(2, 3, 6, 6), torch.randn(2, 32, 6, 6)
    state = student.state_dict()

    def convolved(x: Tensor, name: str) -> Tensor:
        return functional.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], padding=1)

    def normalised(x: Tensor, name: str) -> Tensor:
        mean, variance = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        return functional.batch_norm(x, mean, variance, state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-5)

    expected = functional.leaky_relu(convolved(torch.cat((condition, x), dim=1), "first"), 0.01)
    for block in range(4):
        inner = expected
        for conv, norm in ((0, 1), (3, 4)):
            inner = functional.leaky_relu(normalised(convolved(inner, f"blocks.{block}.layers.{conv}"), f"blocks.{block}.layers.{norm}"), 0.01)
        expected = expected + inner
    torch.testing.assert_close(student(x, condition), convolved(expected, "out"))
    assert "blocks.4.layers.0.weight" not in state


def test_folding_gamma_changes_nothing() -> None:
    flow, x, condition = tiny(7), torch.randn(2, 7, 4, 4), torch.randn(2, 32, 4, 4)
    with torch.no_grad():
        before = flow(x, condition)
        last_layers(flow)
        after = flow(x, condition)
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(other, one)
    assert all(module.gamma.item() == 1 for module in flow.modules() if isinstance(module, Subnetwork))


@pytest.mark.parametrize("network", ["flow", "cnn"])
def test_made_fast_they_are_the_same_networks_whose_last_layers_stay_fp32(network: str) -> None:
    x, condition = torch.randn(2, 16, 6, 6), positional_encoding(6).expand(2, -1, -1, -1)
    for precision, tolerance in (("fp32", 1e-4), ("bf16", 0.05)):
        made: Flow | ConvolutionalStudent = tiny(16, spread=0.3) if network == "flow" else with_statistics(ConvolutionalStudent(16, 8), 16)
        with torch.inference_mode():
            plain = made(x, condition)
            exact = last_layers(made)
            made_fast(made, device=CPU, precision=precision, exact=exact)
            fast = made(x, condition)
        assert len(exact) == (8 if network == "flow" else 1)
        assert all(made.get_submodule(name).weight.dtype == torch.float32 for name in exact)  # type: ignore[union-attr]
        assert not any(isinstance(module, nn.BatchNorm2d) for module in made.modules())
        for one, other in zip(plain if network == "flow" else [plain], fast if network == "flow" else [fast], strict=True):
            assert other.dtype == torch.float32
            torch.testing.assert_close(other, one, rtol=tolerance, atol=tolerance)


def test_without_positional_encoding_the_flow_is_unconditional_and_the_student_sees_features_only() -> None:
    with torch.device("meta"):
        pair = Pair(settings(mode="depth", positional_encoding=False))
    assert pair.encoding.shape == (1, 0, 24, 24)
    assert isinstance(pair.student, ConvolutionalStudent)
    assert pair.student.first.in_channels == 64
    coupling = pair.teacher.couplings[0]
    assert isinstance(coupling, Coupling)
    assert coupling.f1.hidden.in_channels == coupling.f2.hidden.in_channels == 32


def test_the_settings_tell_the_channels_of_several_levels() -> None:
    assert settings(mode="rgb+depth", backbone="efficientnet_lite2", blocks=(6, 14, 19)).channels == 48 + 120 + 208 + 64
    assert asdict(settings(mode="depth"))["backbone_sha256"] == ""
