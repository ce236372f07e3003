"""`ptq debug`: switches, ranking, causes and repair, on a network with one bad layer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import helper, numpy_helper

from ptq.calib_data import input_specs, open_calibration
from ptq.cli import main
from ptq.debug.causes import causes, evidence
from ptq.debug.network import Network, output_loss
from ptq.debug.repair import literal_pattern
from ptq.debug.suspects import group_switches, mask
from ptq.debug.switchboard import switchboard
from ptq.grid import Grid
from ptq.histogram import Histogram
from ptq.integer.outline import outline
from ptq.model import load
from ptq.passes.prepare import prepare
from ptq.plan import ActivationPlan
from ptq.precision import load_map
from ptq.recipe import Recipe
from ptq.report.artifact import load_program
from ptq.report.nearness import Tensor

CHANNELS = 8


def bad_layer() -> onnx.ModelProto:
    """y = Gemm(mean(conv3(Relu(conv2(Relu(conv1(x))))))); conv2 has one huge weight a channel."""
    rng = np.random.default_rng(0)
    shape = (CHANNELS, CHANNELS, 3, 3)
    weights = {f"w{i}": rng.normal(0, 0.2, shape).astype(np.float32) for i in (1, 2, 3)}
    weights["w1"] = rng.normal(0, 0.3, (CHANNELS, 3, 3, 3)).astype(np.float32)
    weights["w2"][:, 0, 0, 0] = 4.0
    weights["head"] = rng.normal(size=(CHANNELS, 5)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], name="conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["ra"], name="relu1"),
        helper.make_node("Conv", ["ra", "w2"], ["b"], name="bad[1]", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["b"], ["rb"], name="relu2"),
        helper.make_node("Conv", ["rb", "w3"], ["c"], name="conv3", pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["c"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "head"], ["y"], name="head", alpha=0.5),
    ]
    graph = helper.make_graph(
        nodes,
        "bad",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", 5])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("debug")
    onnx.save(bad_layer(), folder / "m.onnx")
    x = np.random.default_rng(1).normal(size=(64, 3, 8, 8)).astype(np.float32)
    np.savez(folder / "samples.npz", x=x)
    np.savez(folder / "eval.npz", x=x[:20], labels=np.arange(20) % 5)
    made = run("quantize", folder / "m.onnx", "-o", folder / "q.onnx", "--precision", "w3a8",
               "--calib", folder / "samples.npz", "--no-measure", "--quiet",
               "--effort", "fast")  # fmt: skip
    assert made.exit_code == 0, made.output
    return folder / "q.onnx"


@pytest.fixture(scope="module")
def network(model: Path) -> Network:
    return open_network(model)


def open_network(model: Path) -> Network:
    float_model = prepare(load(model.with_name("m.onnx")))
    board = switchboard(float_model, outline(float_model, Recipe.preset("w3a8")), plan(model))
    specs = input_specs(float_model)
    samples = open_calibration(model.with_name("samples.npz"), specs, limit=8, seed=0)
    return Network(board, samples.batches(4))


def plan(model: Path) -> object:
    return load_program(model).plan


def test_all_switches_off_is_the_float_network(network: Network) -> None:
    assert network.samples == 8
    assert network.loss(mask(network, [])).sqnr_db is None
    assert network.loss(mask(network, [])).amount == 0


def test_all_switches_on_is_the_integer_network(network: Network, model: Path) -> None:
    """The simulation against the reference; float rounding moves few codes by one."""
    from ptq.integer.reference import Reference

    program = load_program(model).program
    wanted, got = [], []
    on = np.ones(len(network.switches), np.bool_)
    for batch, outputs in zip(network._batches, network._run(on), strict=True):
        wanted.append([outputs[0]])
        got.append([Reference(program).run(batch)["y"].astype(np.float64)])
    difference = output_loss(wanted, got).sqnr_db
    # they are near to each other, not just both near to the float network
    assert difference is None or difference > network.loss(on).sqnr_db + 10


def test_one_switch_quantises_one_tensor(network: Network) -> None:
    names = [(switch.kind, switch.name) for switch in network.switches]
    assert ("weight", "bad[1]") in names
    assert ("activation", "ra") in names
    losses = [network.loss(mask(network, [i])).amount for i in range(len(names))]
    assert all(loss > 0 for loss in losses)
    assert names[int(np.argmax(losses))] == ("weight", "bad[1]")


def test_groups_hold_every_switch_once_or_more(network: Network, model: Path) -> None:
    float_model = prepare(load(model.with_name("m.onnx")))
    groups = group_switches(network, outline(float_model, Recipe.preset("w3a8")))
    held = {i for group in groups for i in group.switches}
    assert held == set(range(len(network.switches)))
    by_name = {group.name: group for group in groups}
    assert [network.switches[i].name for i in by_name["conv3"].activations] == ["rb"]


def test_the_bad_layer_comes_first_with_its_cause_and_is_repaired(model: Path) -> None:
    folder, out = model.parent, model.with_name("repair.toml")
    result = run("debug", model, "--calib", folder / "samples.npz", "--eval", folder / "eval.npz",
                 "--samples", 16, "--regain", 50, "-o", out, "--json")  # fmt: skip
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    worst = found["suspects"][0]
    assert (worst["name"], worst["blame"], worst["weight_bits"]) == ("bad[1]", "weight", 3)
    assert "weight outlier" in worst["causes"][0]
    assert worst["without"]["kl"] < found["total"]["kl"]
    assert load_map(out)["bad[[]1]"] == "w8"
    repair = found["repair"]
    assert repair["after"]["loss"]["kl"] < 0.5 * repair["before"]["loss"]["kl"]
    assert repair["after"]["size_bytes"] > repair["before"]["size_bytes"]
    assert repair["samples"] == 20
    assert repair["float_top1"] is not None
    again = run("quantize", folder / "m.onnx", "-o", folder / "r.onnx", "--precision", "w3a8",
                "--calib", folder / "samples.npz", "--no-measure", "--quiet", "--effort", "fast",
                "--precision-map", out)  # fmt: skip
    assert again.exit_code == 0, again.output


def test_it_prints_for_people_and_can_leave_the_repair_unmeasured(model: Path) -> None:
    out = model.with_name("unmeasured.toml")
    result = run("debug", model, "--calib", model.with_name("samples.npz"), "--samples", 4,
                 "--no-apply", "-o", out)  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "bad[1]: weight outlier" in result.stdout
    assert "takes back" not in result.stdout
    assert out.is_file()
    assert "exists already" in run("debug", model, "-o", out).stderr


def test_without_the_float_model_it_says_so(model: Path, tmp_path: Path) -> None:
    for name in ("q.onnx", "q.ptq.json", "q.ptq.safetensors"):
        (tmp_path / name).write_bytes(model.with_name(name).read_bytes())
    result = run("debug", tmp_path / "q.onnx")
    assert result.exit_code == 2
    assert "--float" in result.stderr


def test_names_with_wildcards_match_only_themselves() -> None:
    from fnmatch import fnmatchcase

    for name in ("conv[1]", "a*b?", "re:x", "plain"):
        assert fnmatchcase(name, literal_pattern(name))
    assert not literal_pattern("re:x").startswith("re:")
    assert not fnmatchcase("conv1", literal_pattern("conv[1]"))


def histogram(values: np.ndarray) -> Histogram:
    made = Histogram()
    made.update(values.astype(np.float32))
    return made


def test_causes_of_an_activation() -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.uniform(0, 1, 9900), rng.uniform(10, 20, 100)])
    wide = ActivationPlan(Grid(4), np.float32(20 / 15), 0, 0, 15)
    narrow = ActivationPlan(Grid(4), np.float32(1 / 15), 0, 0, 15)
    tensor = Tensor(histogram=histogram(values))
    (said,) = causes(evidence(None, None, wide, tensor, None), "activation")
    assert said.startswith("input outliers: 99 %")
    (said,) = causes(evidence(None, None, narrow, tensor, None), "activation")
    assert said.startswith("range: 1.0 %")
    dead = Tensor(histogram=histogram(np.zeros(10)))
    assert causes(evidence(None, None, wide, dead, None), "weight") == (
        "dead input: it is always zero",
    )


def test_a_shift_of_whole_channels_is_a_correlated_bias() -> None:
    rng = np.random.default_rng(0)
    wanted = rng.normal(size=(4, 3, 5, 5)).astype(np.float32)
    shifted, noisy = Tensor(), Tensor()
    shifted.add(wanted, wanted + np.float32([0.5, -0.5, 0.2]).reshape(1, 3, 1, 1))
    noisy.add(wanted, wanted + 0.3 * rng.normal(size=wanted.shape).astype(np.float32))
    assert shifted.shift_share == pytest.approx(1)
    assert noisy.shift_share == pytest.approx(0, abs=0.05)
    (said,) = causes(evidence(None, None, None, None, shifted), "weight")
    assert said.startswith("correlated bias: 100 %")
    assert causes(evidence(None, None, None, None, noisy), "weight") == ()
