"""What a watcher of a fit sees."""

import io

from rich.console import Console

from cryoprob.app.progress import HEAD, Live, Plain, display, line


def record(iteration, **more):
    return {
        "iteration": iteration,
        "bound": -1234.567,
        "resolution_A": 9.87,
        "radius": 12,
        "order": 3,
        "images_per_s": 321.4,
        "seconds_left": 75.0,
        **more,
    }


def plain():
    out = io.StringIO()
    return Plain(Console(file=out, width=100)), out


def test_a_line_has_every_number_under_its_name():
    text = line(record(7, stage="refine"))
    columns = {
        "step": "7",
        "nats/image": "-1234.57",
        "resolution": "9.9 A",
        "band": "12",
        "grid": "7.5 deg",
        "images/s": "321",
        "time left": "1 min 15 s",
    }
    for name, value in columns.items():
        start = HEAD.index(name)
        assert value in text[max(0, start - 3) : start + len(name) + 3]
    nothing_searched = {k: v for k, v in record(7).items() if k != "order"}
    assert "deg" not in line(nothing_searched)


def test_lines_where_there_is_no_terminal():
    watcher, out = plain()
    with watcher:
        watcher.stage("refine", 30)
        for step in (1, 2):
            watcher.step(record(step))
        watcher.note("all is well")
    lines = out.getvalue().splitlines()
    assert lines == ["refine: at most 30 steps", HEAD, line(record(1)), line(record(2))] + [
        "all is well"
    ]
    assert type(display(Console(file=io.StringIO()))) is Plain


def test_sentences_are_wrapped_and_one_step_is_one():
    watcher, out = plain()
    with watcher:
        watcher.stage("refine", 1)
        watcher.note("words and more " * 20)
    first, _, *rest = out.getvalue().splitlines()
    assert first == "refine: at most 1 step"
    assert len(rest) > 2 and all(len(one) <= 100 for one in rest)
    assert " ".join(" ".join(rest).split()) == ("words and more " * 20).strip()


def test_starts_are_summed_up():
    watcher, out = plain()
    with watcher:
        watcher.stage("2 starts from nothing", 170)
        for start in (1, 2):
            for step in range(1, 86):
                watcher.step(record(step, start=start))
    text = out.getvalue()
    for start in (1, 2):
        assert f"start {start}: 85 steps, -1234.57 nats per image" in text
    assert len(text.splitlines()) == 4  # short: the steps took less than ten seconds


def test_what_was_cut_short_is_not_summed_up():
    watcher, out = plain()
    try:
        with watcher:
            watcher.stage("starts", 170)
            watcher.step(record(3, start=1))
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert "steps, log" not in out.getvalue()


def test_a_bar_on_a_terminal_counts_resumed_steps():
    out = io.StringIO()
    console = Console(file=out, width=120, force_terminal=True, highlight=False)
    watcher = display(console)
    assert type(watcher) is Live
    with watcher:
        watcher.stage("refine", 30)
        watcher.step(record(8, count=8))
        task = watcher._bar.tasks[0]
        assert (task.completed, task.total) == (8, 30)
        assert task.fields["left"] == "1 min 15 s left"
        watcher.stage("next", 100)
        watcher.step(record(1))
        assert watcher._bar.tasks[0].completed == 1
        assert watcher._bar.moving == line(record(1))  # seen, but not kept
    assert line(record(8)) in out.getvalue()
    assert watcher._bar is None
