"""The report in a real Chromium: it loads alone, and what a person does with it works."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from driver import Browser, browser
from sparse import experts, llama, stages_of, write_sparse, write_sparse_ranks
from typer.testing import CliRunner

from hub_model import qwen3, write_hub
from making import counted, write_file, write_strategy
from reshard.cli.commands import app_for

pytestmark = pytest.mark.browser


def reshard(*words: str | Path) -> None:
    result = CliRunner().invoke(app_for(), [str(w) for w in words])
    assert result.exit_code == 0, result.output


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A conversion of twelve tensors, one with a name that would break a careless page."""
    folder = tmp_path_factory.mktemp("small")
    shapes = {n: s for n, s in llama(1, 16, 32, 64, 8).items() if not {"w3", "wk"} & {*n.split(".")}}
    full = {name: counted(*shape) for name, shape in shapes.items()}
    full |= {"</script><script>document.title='gone'</script>": counted(3), "global_step": counted(dtype="int32")}
    assert len(full) == 12
    model = write_file(folder / "model.safetensors", full)
    strategy = write_strategy(folder / "new", stages_of(shapes, 2, 2, 1, opt_shard=True))
    words = ["--dst-strategy", strategy, "--dtype", "bf16", "--verify", "--quiet", "--report", folder / "small.html"]
    reshard("convert", model, folder / "out", *words)
    return folder / "small.html"


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """90,543 tensors: a mixture of experts in one file."""
    folder = tmp_path_factory.mktemp("large")
    shapes = llama(60, 7168, 18432, 129280, 512) | experts(60, 500, 7168, 2048)
    reshard("inspect", write_sparse(folder / "moe.safetensors", shapes.items()), "--html", folder / "large.html")
    return folder / "large.html"


@pytest.fixture(scope="module")
def ranks64(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 70 billion elements on 64 ranks, to 64 others."""
    folder = tmp_path_factory.mktemp("ranks64")
    shapes = llama(80, 8192, 28672, 128256, 1024)
    stages = stages_of(shapes, 4, 4, 4, opt_shard=True)
    old, new = (write_strategy(folder / n, s) for n, s in (("old", stages), ("new", stages_of(shapes, 1, 8, 8))))
    source = write_sparse_ranks(folder / "ckpt", shapes, stages)
    reshard("plan", source, "--src-strategy", old, "--dst-strategy", new, "--report", folder / "ranks64.html")
    return folder / "ranks64.html"


def check_alone(window: Browser, page: Path) -> None:
    """Open a page: it asks for itself only, complains of nothing, and draws no more than what is seen."""
    window.open(page)
    assert window.requests() == [page.resolve().as_uri()]
    assert window.faults() == []
    assert window.js("return document.getElementsByTagName('*').length") < 5_000
    assert window.js("return document.querySelectorAll('main > section').length") >= 4


def focused(window: Browser) -> str:
    return str(window.js("return document.activeElement.id"))


def selected(window: Browser) -> str:
    return window.text("#tensor h3")


def test_a_small_conversion(window: Browser, small: Path) -> None:
    check_alone(window, small)
    assert window.js("return document.title").startswith("reshard: ")
    assert window.texts("h2") == [
        "Summary", "Tensors", "What moves", "Balance", "What became of names", "The run", "Proof",
    ]  # fmt: skip
    assert "read again, all as written" in window.text("#proof")
    assert "cast: float32 → bfloat16" in window.text("#fates")
    assert window.js("return document.querySelectorAll('.times').length") == 2
    assert "</script>" in window.js("return document.querySelector('#tree').textContent")
    assert window.texts(".family") == ["a full checkpoint", "rank folders"]


def test_click_a_tensor_and_a_part(window: Browser, small: Path) -> None:
    window.open(small)
    window.js("[...document.querySelectorAll('.row .label')].find((e) => e.textContent.includes('lm_head')).click()")
    assert selected(window) == "lm_head.weight"
    assert window.texts("section.side:last-of-type .picture text") == ["0", "2", "1", "3"]
    window.click("section.side:last-of-type .picture .part:nth-of-type(3)")
    frames = window.js("return [...document.querySelectorAll('.frame')].map((f) => f.getAttribute('visibility'))")
    assert frames == ["visible", "visible"]
    share = "f.getAttribute('y') / f.parentNode.viewBox.baseVal.height"
    boxes = window.js(f"return [...document.querySelectorAll('.frame')].map((f) => {share})")
    assert boxes[0] == pytest.approx(boxes[1]) == pytest.approx(0.5, abs=0.02)
    window.js("document.querySelectorAll('section.side input')[1].value = 2")
    window.js("document.querySelectorAll('section.side input')[1].dispatchEvent(new Event('change'))")
    assert window.js("return document.querySelectorAll('.part.chosen').length") == 1


def test_where_a_row_of_a_fused_tensor_comes_from(window: Browser, tmp_path: Path) -> None:
    hub = write_hub(tmp_path / "hub", qwen3())
    reshard("plan", hub, "--to", "torch_dist", "--report", tmp_path / "fused.html")
    check_alone(window, tmp_path / "fused.html")
    window.js("[...document.querySelectorAll('.row .label')].find((e) => e.textContent.includes('linear_qkv')).click()")
    assert window.text("#origins caption") == "Made of"
    assert window.text("#origins tbody tr").split() == ["0–7", "model.layers.0.self_attn.q_proj.weight", "0–7"]
    window.type("#row", "62")  # layers lie in one tensor there, 32 rows each
    assert window.text("#row-is") == "row 6 of model.layers.1.self_attn.v_proj.weight"
    window.type("#row", "0")  # which makes 620
    assert window.text("#row-is") == "no such row (0–63)"


def test_keys(window: Browser, small: Path) -> None:
    window.open(small)
    window.press("/")
    assert focused(window) == "search"
    window.type("#search", "layers.0.attention_n")
    assert window.text("#matches") == "1 found"
    window.press("Enter")
    assert (focused(window), selected(window)) == ("tree", "model.layers.0.attention_norm.weight")
    window.press("/")
    window.press("Escape")
    assert window.js("return document.querySelector('#search').value") == ""
    window.js("document.querySelector('#tree').focus()")
    first = window.texts(".row.at .label")  # what the search found is in sight without it
    assert "attention_norm" in first[0]
    window.press("Up")
    assert window.texts(".row.at .label") != first
    window.press("Down")
    assert window.texts(".row.at .label") == first
    window.press("t")
    assert window.js("return document.documentElement.dataset.theme") == "dark"
    window.js("document.querySelector('.heat').focus()")
    window.press("Right", "Down")
    assert re.fullmatch(r"source rank 0 → target rank 1: [\d.]+ \w+", window.text(".status"))


def test_folding_by_keys(window: Browser, ranks64: Path) -> None:
    window.open(ranks64)
    window.js("document.querySelector('#tree').focus()")
    rows = len(window.texts("#tree .row"))
    window.press("Left")
    assert "feed_forward" in window.texts(".row.at .label")[0]
    window.press("Left")
    assert len(window.texts("#tree .row")) == rows - 3
    window.press("Right")
    assert len(window.texts("#tree .row")) == rows


def test_chinese(window: Browser, small: Path, tmp_path: Path) -> None:
    window.open(small)
    window.click("#language")
    assert window.js("return document.documentElement.lang") == "zh-CN"
    assert window.texts("h2") == ["概要", "张量", "数据流向", "均衡", "各名称的去向", "运行", "校验"]
    assert window.js("return Object.keys(WORDS.en).filter((k) => !(k in WORDS.zh)).length") == 0
    assert window.js("return Object.keys(WORDS.zh).filter((k) => !(k in WORDS.en)).length") == 0
    reason = "optimizer states (adam_m., adam_v.), which Hugging Face has no place for"
    chinese_reason = window.js(f"return reasonInChinese({reason!r})")
    assert chinese_reason == "优化器状态（adam_m., adam_v.），Hugging Face 没有存放它们的位置"
    assert window.js("return reasonInChinese('what a recipe of somebody says')") == "what a recipe of somebody says"
    window.press("l")
    assert window.texts("h2")[0] == "Summary"
    with browser(tmp_path, "zh-CN") as chinese:
        chinese.open(small)
        assert chinese.texts("h2")[0] == "概要"
        assert chinese.faults() == []


def test_every_word_is_used_and_known(window: Browser, small: Path) -> None:
    """No key is missing from the words, none is left over."""
    window.open(small)
    text = window.js("return document.querySelector('body > script:last-of-type').textContent")
    used = set(re.findall(r"\bwords\.(\w+)", text))
    by_name = {"writing", "verifying", "dropped", "absent", "source", "target"}
    sections = {"summary", "tensors", "movement", "balance", "fates", "run", "proof"}
    known = set(window.js("return Object.keys(WORDS.en)"))
    assert used - known == set()
    assert known - used - by_name - sections == set()


def test_dark_and_light(window: Browser, small: Path) -> None:
    colours = "const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]"
    window.open(small)
    light = window.js(colours)
    window.click("#theme")
    dark = window.js(colours)
    for ink, paper in (light, dark):
        assert contrast(ink, paper) > 7
    assert luminance(light[1]) > 0.8 > 0.1 > luminance(dark[1])
    window.cdp("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    window.open(small)
    assert window.js(colours) == dark
    window.cdp("Emulation.setEmulatedMedia", features=[])


def luminance(colour: str) -> float:
    channels = [int(n) / 255 for n in re.findall(r"\d+", colour)[:3]]
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_ninety_thousand_tensors(window: Browser, large: Path) -> None:
    assert large.stat().st_size < 200_000
    check_alone(window, large)
    assert "90,543" in window.text("#summary")
    assert window.js("return document.querySelectorAll('#tree .row').length") < 60
    window.type("#search", "layers.59.feed_forward.experts.499.w2")
    assert "1 found" not in window.text("#matches")  # the pattern stands for all of them
    assert window.js("return document.querySelectorAll('#tree .row').length") < 60
    window.press("Enter")
    assert selected(window) == "model.layers.{0-59}.feed_forward.experts.{0-499}.w2.weight"
    for absent in ("layers.60.feed", "layers.59.feed_forward.experts.500"):
        window.press("/")
        window.press("Escape")
        window.type("#search", absent)
        assert window.text("#matches") == "0 found"
        window.press("Escape")
    assert window.faults() == []


def test_names_that_do_not_fold(window: Browser, tmp_path: Path) -> None:
    """Twenty thousand names of one level: only the rows in sight are in the page."""
    shapes = ((f"tensor_{i}", (4,)) for i in range(20_000))
    reshard("inspect", write_sparse(tmp_path / "flat.safetensors", shapes), "--html", tmp_path / "flat.html")
    check_alone(window, tmp_path / "flat.html")
    window.js("document.querySelector('#tree').focus()")
    window.js("document.querySelector('#tree').scrollTop = 26 * 19000")
    window.js("drawRows()")
    rows = window.texts("#tree .row .label")
    assert len(rows) < 60
    assert any("tensor_19000" in row for row in rows)
    window.type("#search", "tensor_12345")
    assert window.text("#matches") == "1 found"


def test_seventy_billion_on_64_ranks(window: Browser, ranks64: Path) -> None:
    assert ranks64.stat().st_size < 300_000
    check_alone(window, ranks64)
    assert window.texts("#alike option")[0].startswith("model.layers.{0-9}.feed_forward.w1.weight")
    window.js("const s = document.querySelector('#alike'); s.value = 7; s.dispatchEvent(new Event('change'))")
    assert "stage 3 of 4" in window.text("#tensor")
    assert "stage 7 of 8" in window.text("#tensor")
    assert window.texts("section.side:last-of-type .picture text") == [str(r) for r in range(56, 64)]
    assert window.js("return document.querySelectorAll('.heat rect').length") > 500


def test_it_prints(window: Browser, small: Path, ranks64: Path) -> None:
    """The pages of a PDF, and a sheet on which no drawing is cut off at the right."""
    window.open(small)
    printed = window.print_pdf()
    assert printed.startswith(b"%PDF")
    assert len(printed) > 20_000
    with window.seen_on(720, "print"):
        window.open(ranks64)
        edge = (
            "const end = (e) => e.getBoundingClientRect().right; return [...document.querySelectorAll('svg')].map(end)"
        )
        assert 500 < max(window.js(edge)) <= 720
    assert window.faults() == []


def test_a_plan_for_no_target_yet(window: Browser, ranks64: Path) -> None:
    window.open(ranks64)
    assert window.text("h1") == "Plan ckpt"
    assert window.js("return document.title").endswith("/ckpt")


def test_a_phone(window: Browser, ranks64: Path) -> None:
    """Nothing but the drawings, which scroll, is wider than the window; buttons keep to one line."""
    with window.seen_on(400):
        for language in ("en", "zh"):
            window.open(ranks64)
            window.js("state.language = arguments[0]; draw()", language)
            assert window.js("return document.documentElement.scrollWidth") == 400
            heights = window.js("return [...document.querySelectorAll('button')].map((e) => e.offsetHeight)")
            assert 20 < max(heights) < 40
