"""`engineroom plan`: what fits, what does not and by how much, and the claims of guides that are wrong."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from checkpoints import small_model, write_shard
from click.testing import CliRunner, Result

from engineroom import cli, plan_text, planner
from engineroom.catalog import Catalog
from engineroom.errors import BadRequest, UnknownName

ROOT = Path(__file__).parents[2]


def plan(*arguments: str) -> Result:
    """`engineroom plan` with these arguments."""
    return CliRunner().invoke(cli.cli, ["plan", *arguments], catch_exceptions=isinstance)


def shown(catalog: Catalog, model: str, gpus: str, nodes: int = 1, **wanted: str | int) -> tuple[planner.Plan, str]:
    """A plan and its text."""
    made = planner.of_request(catalog, model, gpus, nodes, planner.Wanted(**wanted))  # type: ignore[arg-type]
    return made, plan_text.text(catalog, made, None if made.works else planner.smallest_like(catalog, made))


def test_every_stack_fits(catalog: Catalog) -> None:
    """The context of each stack's row fits the GPUs that the row names, and its plan is what the launcher would decide."""
    for name, stack in catalog.stacks.items():
        if stack.gpus:
            made = planner.of_stack(catalog, name)
            assert made.works, f"{name}: {made.found}"
            assert made.image == stack.image


def test_v3_on_two_a100_is_refused_with_numbers(catalog: Catalog) -> None:
    """R12: the guide's V3 in FP8 on 2 x A100-80GB. 313 GiB of weights a card; sixteen are the fewest."""
    made, text = shown(catalog, "v3", "a100-80:2")

    assert not made.works
    assert made.found.stages[0].weights / 2**30 == pytest.approx(314, abs=2)
    assert "does not fit: each GPU lacks 24" in text
    assert "needs 14 more: 2 nodes of 8 x A100-80GB (tensor parallel 8, pipeline parallel 2)" in text


def test_v3_in_16_bits_on_one_card_is_refused_with_numbers(catalog: Catalog) -> None:
    """R12: the guide's V3 in FP16 on one GPU of 80 GB. 1.25 TiB of weights."""
    made, text = shown(catalog, "v3", "a100-80:1", precision="half")

    assert not made.works
    assert made.found.stages[0].weights / 2**30 == pytest.approx(1250, rel=0.002)
    assert "each GPU lacks 1,18" in text
    assert "as a converted checkpoint" in text


@pytest.mark.parametrize(
    ("gpus", "nodes", "works"),
    [("a100-80:8", 1, False), ("h100:8", 1, False), ("a100-80:8", 2, True), ("h100:8", 2, True), ("h200:8", 1, True), ("h200:4", 1, False)],
)
def test_layouts_of_671b(catalog: Catalog, gpus: str, nodes: int, works: bool) -> None:
    """No layout of eight 80 GB cards holds R1's FP8 weights; sixteen do, and eight H200."""
    assert shown(catalog, "r1", gpus, nodes)[0].works is works


def test_fp8_on_a100_is_weight_only(catalog: Catalog) -> None:
    """An A100 has no FP8 arithmetic, and the plan says what that means."""
    _, text = shown(catalog, "v3", "a100-80:8", 2)

    assert "NVIDIA A100 has no FP8 arithmetic" in text
    assert "no faster in large batches" in text


def test_eight_billion_in_16_bits_are_16_gb(catalog: Catalog) -> None:
    """An 8 B model does not take 40 GB: 15.3 GiB are weights, the rest is context."""
    made, text = shown(catalog, "r1-0528-8b", "a100-40:1")

    assert made.works
    assert "weights 15.3 GiB" in text


def test_fp8_on_v100_names_the_reason(catalog: Catalog) -> None:
    """No FP8 below compute capability 80, and no image."""
    made, text = shown(catalog, "r1", "v100:8")

    assert made.image == ""
    assert "a V100 is 70" in text


def test_fp4_weights_are_not_made_while_loading(catalog: Catalog) -> None:
    """FP4 needs a checkpoint that has it, and a B200."""
    with pytest.raises(BadRequest, match="no FP4 weights"):
        shown(catalog, "r1-7b", "b200:1", precision="fp4")
    assert shown(catalog, "r1-0528-fp4", "b200:8")[0].works
    assert not shown(catalog, "r1-0528-fp4", "h200:8")[0].works


def test_a_shorter_context_is_offered(catalog: Catalog) -> None:
    """What holds the weights and not the wanted context says which context it holds, and what would hold it."""
    made, text = shown(catalog, "r1-32b", "a100-80:1", context=131_072)

    assert not made.works
    assert f"fits with a context of {made.found.context:,} tokens, not 131,072; needs 1 more: 2 x A100-80GB" in text
    assert shown(catalog, "r1-32b", "a100-80:1", context=made.found.context)[0].works


def test_a_folder_is_read_by_its_headers(catalog: Catalog, tmp_path: Path) -> None:
    """A folder needs config.json and the headers, not the weights; it gives what the catalog's row of the same model gives."""
    folder = tmp_path / "demo"
    shutil.copytree(ROOT / "models/demo-r1", folder)

    of_folder, text = shown(catalog, str(folder), "a100-80:2")
    of_row, _ = shown(catalog, "demo-r1", "a100-80:2")

    assert of_folder.found == of_row.found
    assert "counted from its files" in text
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-1])
    with pytest.raises(BadRequest, match="is truncated"):
        shown(catalog, str(folder), "a100-80:2")
    (folder / "config.json").write_text("[")
    with pytest.raises(BadRequest, match=r"config.json is no JSON"):
        shown(catalog, str(folder), "a100-80:2")


def test_what_a_machine_can_run(catalog: Catalog) -> None:
    """`--gpu h200:8`: every model that an image for it serves, with the longest context; none that no image serves."""
    result = plan("--gpu", "h200:8")

    assert result.exit_code == 0
    rows = {line.split()[0]: line for line in result.output.splitlines()[1:]}
    assert set(rows) == {name for name, model in catalog.models.items() if model.precision != "fp4"}
    assert "163,840" in rows["r1"]


def test_what_a_model_needs() -> None:
    """`--model v3`: of each kind of GPU the fewest that serve it, and none of those that cannot."""
    result = plan("--model", "v3")

    assert [re.split(" {2,}", line)[1] for line in result.output.splitlines()[1:]] == [
        "3 nodes of 8 x A100-40GB", "2 nodes of 8 x A100-80GB", "2 nodes of 8 x H100-80GB", "8 x H200-141GB",
    ]  # fmt: skip


def test_json_has_what_the_text_says() -> None:
    """--json: bytes and tokens, the verdict, and the smallest layout."""
    result = plan("--model", "v3", "--gpu", "a100-80:2", "--json")
    found = json.loads(result.output)

    assert result.exit_code == planner.DOES_NOT_FIT
    assert found["works"] is False
    assert found["missing"] > 200 * 2**30
    assert (found["least"]["gpus"], found["least"]["nodes"]) == (8, 2)
    assert json.loads(plan("--model", "v3", "--json").output)[0]["works"] is True


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "Name a stack alone, or give --model, --gpu or both"),
        (["r1-7b-v100", "--gpu", "v100"], 2, "Name a stack alone"),
        (["r1-7b-v100", "--context", "9"], 2, "Name a stack alone"),
        (["--model", "r1-7b", "--gpu", "a100", "--context", "0"], 2, "--context"),
        (["r1-7b-v100", "--nodes", "4"], 2, "--nodes goes with --gpu"),
        (["--model", "v3", "--nodes", "4"], 2, "--nodes goes with --gpu"),
        (["r1-7b-v100"], 0, "fits: 8,192 tokens of context"),
        (["--gpu", "v100", "--precision", "fp8"], 78, "does not fit"),
    ],
)
def test_command_line(arguments: list[str], code: int, message: str) -> None:
    """Usage errors are sentences, and the exit status says whether it fits."""
    result = plan(*arguments)

    assert result.exit_code == code
    assert message in result.output


def test_a_model_for_no_gpu_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty table alone would look like a fault."""
    monkeypatch.setattr(planner, "smallest", lambda *_: None)
    result = plan("--model", "r1")

    assert result.exit_code == planner.DOES_NOT_FIT
    assert "r1: no GPU of the catalog serves it so" in result.output


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("x100", UnknownName, "There is no GPU 'x100'. Did you mean 'v100'"),
        ("v100-24", BadRequest, "no NVIDIA V100 of 24 GiB; there are 16, 32"),
        ("v100:0", BadRequest, "KIND:COUNT"),
        ("v100:99999999999", BadRequest, "KIND:COUNT"),
        ("v100:65", BadRequest, "at most 64"),
        ("8*v100", BadRequest, "KIND:COUNT"),
        ("cpu", UnknownName, "no GPU 'cpu'"),
    ],
)
def test_gpus_that_are_not_understood(catalog: Catalog, text: str, error: type[Exception], message: str) -> None:
    """Each says what is known instead."""
    with pytest.raises(error) as found:
        planner.machines(catalog, text)

    assert message in str(found.value)


def test_a_model_that_is_not_known(catalog: Catalog) -> None:
    """Neither in the catalog nor a folder: the nearest name."""
    with pytest.raises(UnknownName, match="Did you mean 'r1-7b'"):
        shown(catalog, "r1-7", "v100")


def test_a_stack_without_gpus_is_told_what_counts_there(catalog: Catalog) -> None:
    """The demo's memory is a variable."""
    with pytest.raises(BadRequest, match="VLLM_CPU_KVCACHE_SPACE"):
        planner.of_stack(catalog, "demo-cpu")


def test_what_no_more_gpus_would_mend_offers_none(catalog: Catalog) -> None:
    """A plan that fails for another reason than GPUs does not ask for more of them, least of all for fewer."""
    _, text = shown(catalog, "r1-7b", "v100:8", seqs=10_000_000)

    assert "more:" not in text


def test_a_context_that_the_model_has_not(catalog: Catalog) -> None:
    """It is named as such, and not as a lack of GPUs."""
    with pytest.raises(BadRequest, match="has a context of 131,072 tokens"):
        shown(catalog, "r1-7b", "h200:8", context=1_000_000)


def test_more_stages_than_layers(catalog: Catalog, tmp_path: Path) -> None:
    """The demo model's six layers do not go over seven nodes."""
    with pytest.raises(BadRequest, match="cannot be cut"):
        shown(catalog, "demo-r1", "a100-80:1", 7)


@pytest.mark.parametrize(
    ("config", "dtype", "said"),
    [({"quant_method": "awq"}, "I32", "AWQ, as stored"), ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "U8", "FP4, as stored")],
)
def test_a_folder_of_quantised_weights(catalog: Catalog, tmp_path: Path, config: dict[str, str], dtype: str, said: str) -> None:
    """What holds them is named, and nothing is claimed of it that is not known."""
    folder = small_model(tmp_path, {**catalog.models["r1-7b"].config, "quantization_config": config})
    write_shard(folder / "model.safetensors", {"model.layers.0.mlp.up_proj.weight": (dtype, [64, 64])})

    assert said in shown(catalog, str(folder), "a100-80:1")[1]


@pytest.mark.parametrize(("config", "held"), [({"quant_method": "awq"}, "half"), ({"quant_method": "awq"}, "fp8")])
def test_four_bits_are_not_counted_as_more(catalog: Catalog, tmp_path: Path, config: dict[str, str], held: str) -> None:
    """Packed weights say nothing of what they would weigh in another precision, and no engine makes it of them."""
    folder = small_model(tmp_path, {**catalog.models["r1-7b"].config, "quantization_config": config})
    write_shard(folder / "model.safetensors", {"model.layers.0.mlp.up_proj.weight": ("I32", [64, 64])})

    for model in (str(folder), "r1-0528-fp4"):
        with pytest.raises(BadRequest, match="is not made of them"):
            shown(catalog, model, "h200:8", precision=held)


@pytest.mark.parametrize(
    ("gpus", "nodes", "wanted"), [("h200:8", 1, {"context": 32_768}), ("h200:8", 4, {}), ("b200:8", 1, {"precision": "fp4"})]
)
def test_what_one_model_cannot_does_not_hide_the_others(catalog: Catalog, gpus: str, nodes: int, wanted: dict[str, int]) -> None:
    """The demo model has 4,096 tokens and six layers, and most have no FP4 weights: the rest is planned."""
    found = planner.for_gpus(catalog, gpus, nodes, planner.Wanted(**wanted))  # type: ignore[arg-type]

    names = {plan.checkpoint.name for plan in found}
    assert ({"r1-0528-fp4"} if "precision" in wanted else {"r1", "r1-7b"}) <= names
    assert "demo-r1" not in names


def test_a_size_that_cannot_share_a_model_is_passed_over(catalog: Catalog, tmp_path: Path) -> None:
    """Looking for enough GPUs, layouts with more stages than layers are none; nobody had asked for them."""
    shape = {"num_hidden_layers": 2, "num_attention_heads": 14, "num_key_value_heads": 2, "hidden_size": 896, "intermediate_size": 4864}
    folder = small_model(tmp_path, {**catalog.models["r1-7b"].config, **shape})
    write_shard(folder / "model.safetensors", {"model.layers.0.mlp.up_proj.weight": ("BF16", [4864, 896])})
    made, text = shown(catalog, str(folder), "v100-16:1", seqs=8192)

    assert not made.works
    assert "fits with a context of" in text


def test_fewer_gpus_that_can_share_the_layers(catalog: Catalog) -> None:
    """Seven GPUs a node share no layer of R1: 28 of them do not do what 24 in nodes of eight do."""
    made, text = shown(catalog, "r1", "a100-40:7", 4)

    assert not made.works
    assert "; instead: 3 nodes of 8 x A100-40GB" in text


def test_tensor_parallel_below_the_gpus_of_a_node(catalog: Catalog) -> None:
    """What tensor parallel leaves of a node goes to pipeline parallel, as the stack's own settings say."""
    made = planner.of_request(catalog, "v3", "h200:8", 1, planner.Wanted(tp=4))

    assert (made.layout.tp, made.layout.pp) == (4, 2)


def test_no_more_requests_than_the_engine_runs(catalog: Catalog) -> None:
    """A cache for 38 requests is none for them where the stack runs four at once."""
    made = planner.of_stack(catalog, "r1-b200-low-latency")

    assert plan_text.at_once(made) == {8_192: 4, 32_768: 4, 65_536: 4}
    assert planner.of_request(catalog, "r1-7b", "h200", 1, planner.Wanted(seqs=4)).found.requests(8_192) == 4
