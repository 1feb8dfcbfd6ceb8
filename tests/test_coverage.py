"""What the documents of what trains say."""

from scripts.coverage import Row, render

ROWS = [
    Row("full", "bert", "portable", error=2e-6, planned_bytes=1500),
    Row("full", "bert", "xnnpack", 3e-4, 0.98, 1, 900, ("aten.embedding.default",)),
]


def test_a_row_says_how_far_training_was_from_eager() -> None:
    lines = render("# Title", ROWS).splitlines()
    assert lines[:3] == ["# Title", "", "## `full`"]
    assert lines[-2:] == [
        "| bert | portable | yes | 2e-06 |  |  | 1.5 kB |  |",
        "| bert | xnnpack | **no** | 3e-04 | 98 % | 1 | 0.9 kB | embedding.default |",
    ]


def test_what_was_not_run_is_listed() -> None:
    text = render("# Title", ROWS, [("lora:4", "t5", "xnnpack")])
    assert text.endswith("\n## Not run\n\n- t5 on xnnpack, `lora:4`\n")
