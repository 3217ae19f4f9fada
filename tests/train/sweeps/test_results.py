"""The numbers of a sweep: paired differences and their intervals, fits, tables; on runs made by hand."""

import csv
import json
import math
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from browser import assert_drawn, chromium
from handmade_rows import write_jsonl

from train.report import main as report_main
from train.sweeps.results.page import sweep_page
from train.sweeps.results.paired import PairedDifferences, bootstrap, paired_differences, read_reward_rows
from train.sweeps.results.result import ALL, Effect, curves_of, fit
from train.sweeps.results.tables import result_rows, result_tables, sentence, sentences, write_tables
from train.sweeps.results.write import read_results
from train.sweeps.state import Sweep, SweepRun


def write_run(directory, right: dict[str, list[int]], *, first_row: int = 1, pairs: int = 100, extra=None) -> None:
    """A finished run whose held-out pairs are right (1) or wrong (0), by source."""
    (directory / "evaluations").mkdir(parents=True)
    rows = [(name, first_row + i, float(ok), 0.5) for name, oks in right.items() for i, ok in enumerate(oks)]
    names = ("source", "row", "chosen_reward", "rejected_reward")
    table = pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))
    pq.write_table(table, directory / "evaluations" / "rewards-step-9.parquet")
    metrics = {"step": 9, "train/pairs_seen": pairs}
    for name, oks in (right | {ALL: [ok for values in right.values() for ok in values]}).items():
        found = {"accuracy": float(np.mean(oks)), "loss": 0.5, "pairs": len(oks)}
        metrics |= {f"eval/{name}/{key}": value for key, value in found.items()}
    (directory / "metrics.jsonl").write_text(json.dumps(metrics | (extra or {})) + "\n")
    (directory / "finished.json").write_text("{}\n")


def make_sweep(
    directory, points: dict[str, dict[int | None, dict[str, list[int]]]], baseline="base", changes=None, **options
) -> Sweep:
    runs = []
    for point, seeds in points.items():
        for seed, right in seeds.items():
            name = point if seed is None else f"{point}_seed-{seed}"
            amount = options.get("pairs", {}).get(point, 100)
            if right is not None:
                write_run(directory / name, right, pairs=amount, extra=options.get("extra"))
            runs.append(SweepRun(name, point, seed, directory / name, pairs=amount, distinct=amount, seconds=3.0))
    return Sweep(directory, baseline, {point: (changes or {}).get(point, {}) for point in points}, runs)


# --- differences ----------------------------------------------------------------------------------------------------


def rows(right: list[int], first: int = 1) -> dict:
    return {"s": (np.arange(first, first + len(right)), np.array(right, dtype=float))}


def effects_of(values: np.ndarray, names: str = "s") -> dict[str, Effect]:
    """Of differences (seed x pair) of one point; `names` has the source of each pair, or of all."""
    sources = np.array(list(names if len(names) > 1 else names * values.shape[1]), dtype=object)
    return bootstrap({"p": PairedDifferences(sources, b"", values, 0)})["p"]


def test_pairs_are_matched_by_source_and_row_and_those_of_one_run_are_counted():
    mine = {"s": (np.array([2, 3, 5]), np.array([1.0, 0.0, 1.0])), "t": (np.array([1]), np.array([1.0]))}
    base = {"s": (np.array([1, 2, 3]), np.array([0.0, 0.0, 0.0]))}
    found = paired_differences([(mine, base)])
    assert list(found.sources) == ["s", "s"]
    assert found.values.tolist() == [[1.0, 0.0]]
    assert found.left_out == 3  # row 1, row 5, and the source t


def test_seeds_with_other_held_out_pairs_are_put_together():
    found = paired_differences([(rows([1, 1]), rows([0, 0])), (rows([0, 0], 2), rows([0, 0], 2))])
    assert np.array_equal(found.values, [[1, 1, np.nan], [np.nan, 0, 0]], equal_nan=True)
    effect = bootstrap({"p": found})["p"][ALL]
    assert effect.difference == 0.5  # the mean over seeds of 1 and 0
    assert effect.pairs == 3


def test_the_interval_over_pairs_is_that_of_the_paired_differences():
    values = np.random.default_rng(1).choice([-1.0, 0.0, 0.0, 1.0, 1.0], size=(1, 4000))
    effect = effects_of(values)["s"]
    error = values.std() / math.sqrt(4000)
    assert effect.difference == pytest.approx(values.mean())
    assert effect.plus_minus == pytest.approx(1.96 * error, rel=0.1)
    assert effect.both_low is None
    assert effects_of(values)["s"] == effect  # seeded


def test_the_interval_over_seeds_has_their_spread_in_it():
    """Three seeds that differ by far more than pairs do: the standard error of their mean, unbiased."""
    means = np.array([0.1, 0.2, 0.4])
    effect = effects_of(np.tile(means[:, None], (1, 500)))["s"]
    assert (effect.low, effect.high) == pytest.approx((means.mean(), means.mean()))
    picked = np.random.default_rng(0).choice(means, size=(100_000, 3)).mean(axis=1) - means.mean()
    assert np.std(picked) * math.sqrt(3 / 2) == pytest.approx(means.std(ddof=1) / math.sqrt(3), rel=0.02)
    low, high = np.percentile(means.mean() + math.sqrt(3 / 2) * picked, [2.5, 97.5])
    assert (effect.both_low, effect.both_high) == pytest.approx((low, high), abs=0.02)


def test_each_source_has_its_own_effect_and_its_number_of_pairs_stays_in_every_draw():
    effects = effects_of(np.array([[1.0] * 10 + [-1.0] * 30]), "s" * 10 + "t" * 30)
    assert effects["s"] == Effect(1, 1, 1, pairs=10)
    assert effects["t"] == Effect(-1, -1, -1, pairs=30)
    assert effects[ALL] == Effect(-0.5, -0.5, -0.5, pairs=40)


def test_read_rows_takes_the_last_evaluation_and_a_tie_is_not_right(tmp_path):
    write_run(tmp_path / "run", {"s": [0, 1]})
    folder = tmp_path / "run" / "evaluations"
    table = pa.table({"source": ["s", "s"], "row": [7, 3], "chosen_reward": [1.0, 2.0], "rejected_reward": [1.0, 0.0]})
    pq.write_table(table, folder / "rewards-step-10.parquet")
    (found,) = read_reward_rows(tmp_path / "run").values()
    assert [column.tolist() for column in found] == [[3, 7], [1.0, 0.0]]
    assert read_reward_rows(tmp_path) == {}


# --- of a sweep -----------------------------------------------------------------------------------------------------

SEEDS = {
    "base": {0: {"s": [1] * 60, "t": [1] * 40}, 1: {"s": [1] * 60, "t": [1] * 38 + [0] * 2}},
    "without-s": {0: {"s": [1] * 30 + [0] * 30, "t": [1] * 40}, 1: {"s": [1] * 34 + [0] * 26, "t": [1] * 38 + [0] * 2}},
    "without-t": {0: {"s": [1] * 60, "t": [1] * 39 + [0]}, 1: None},
}


@pytest.fixture
def sweep(tmp_path):
    sweep = make_sweep(tmp_path / "sweep", SEEDS)
    sweep.runs[-1].code, sweep.runs[-1].error = 1, "error: out of <memory>"
    sweep.save()
    return sweep


def test_a_point_is_compared_on_the_seeds_that_both_have(sweep):
    base, without_s, without_t = read_results(sweep).points
    assert base.effects == {}
    assert base.mean("eval/all/accuracy") == pytest.approx(0.99)
    assert base.spread("eval/all/accuracy") == pytest.approx(0.02 / math.sqrt(2))
    assert without_s.effects[ALL].difference == pytest.approx(-0.28)
    assert without_s.effects["s"].difference == pytest.approx(-28 / 60)
    assert without_s.effects["t"] == Effect(0, 0, 0, 0, 0, pairs=40)
    assert without_t.effects[ALL].difference == pytest.approx(-0.01)
    assert without_t.effects[ALL].both_low is None
    assert len(without_t.runs) == 1


def test_seeds_that_hold_out_other_pairs_are_told(sweep):
    for run in sweep.runs[:4]:
        if run.seed == 1:
            shutil.rmtree(run.directory)
            write_run(run.directory, SEEDS[run.point][1], first_row=31)
    result = read_results(sweep)
    assert "the seeds do not hold out the same pairs" in result.notes[0]
    assert result.points[1].effects[ALL].pairs == 90 + 70
    assert result.points[1].effects[ALL].difference == pytest.approx(-0.28)


def test_a_run_without_its_files_is_noted_and_the_rest_is_there(sweep):
    (sweep.directory / "without-s_seed-0" / "metrics.jsonl").unlink()
    (sweep.directory / "base_seed-1" / "finished.json").unlink()
    result = read_results(sweep)
    assert any("without-s_seed-0" in note for note in result.notes)
    assert "no finished run of the baseline" in result.points[1].notes[0]
    assert result.points[1].effects == {}
    assert result.points[2].effects[ALL].pairs == 100


def test_sentences_say_what_a_source_is_worth_and_what_is_not_clear(sweep):
    told = sentences(read_results(sweep))
    assert told[0].startswith("dropping s costs 28.0 +- ")
    assert told[0].endswith(" points of held-out accuracy")
    assert told[1].startswith("dropping t: no clear difference (-1.0 +- ")
    assert told[1].endswith(" points)")
    clear = Effect(0.008, 0.005, 0.011)
    assert sentence("with-x", clear, "base") == "adding x gives 0.8 +- 0.3 points of held-out accuracy"
    assert sentence("lr-2", clear, "lr-1") == "lr-2 against lr-1 gains 0.8 +- 0.3 points of held-out accuracy"
    unclear = Effect(0.008, 0.005, 0.011, -0.01, 0.03)
    assert sentence("with-x", unclear, "base") == "adding x: no clear difference (+0.8 +- 2.0 points)"
    assert sentence("lr-2", unclear, "lr-1") == "lr-2 against lr-1: no clear difference (+0.8 +- 2.0 points)"


def test_a_point_with_many_ties_has_a_note(tmp_path):
    points = {name: {0: {"s": [0, 0, 0, 0]}, 1: {"s": [0, 0, 0, 0]}} for name in ("base", "dead")}
    sweep = make_sweep(tmp_path, points, extra={"eval/all/ties": 0.01})
    for seed, ties in enumerate((1.0, 0.5)):
        path = tmp_path / f"dead_seed-{seed}" / "metrics.jsonl"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"eval/all/ties": ties}) + "\n")
    notes = [remark for remark in result_tables(read_results(sweep))[0].remarks if "ties" in remark]
    assert notes == [
        "dead: 3 of 4 held-out pairs (75.0 %, the mean over its runs) are ties: both responses have the same reward, "
        "and a tie is no win"
    ]


def test_tables_for_people_and_programs(sweep):
    result = read_results(sweep)
    whole, by_source = result_tables(result)
    assert [row[0] for row in whole.rows] == ["point", "base *", "without-s", "without-t"]
    assert whole.rows[1][1:6] == ["2", "100", "99.0", "1.4", "-"]
    assert whole.rows[2][5] == "-28.0"
    assert whole.rows[3][1] == "1 of 2"
    assert any("without-t_seed-1 failed: error: out of <memory>" in remark for remark in whole.remarks)
    assert by_source.rows[0] == ["point", "s", "t"]
    assert by_source.rows[1] == ["base *", "100.0", "97.5"]
    write_tables(result)
    with open(sweep.directory / "results.csv") as file:
        lines = list(csv.DictReader(file))
    table = pq.read_table(sweep.directory / "results.parquet").to_pylist()
    assert len(lines) == len(table) == len(result_rows(result))
    row = next(r for r in table if r["point"] == "without-s" and r["metric"] == "eval/all/accuracy")
    assert row["difference"] == pytest.approx(-0.28)
    assert row["low"] < row["difference"] < row["high"] < 0
    assert row["runs"] == 2
    assert "| without-s |" in (sweep.directory / "results.md").read_text()


def test_benchmark_metrics_have_a_table(tmp_path):
    points = {"base": {0: {"s": [1, 0]}, 1: {"s": [1, 0]}}, "p": {0: {"s": [1, 1]}}}
    extra = {"benchmark/rm_bench/score/accuracy": 0.625, "benchmark/rm_bench/easy/accuracy": 0.5}
    table = result_tables(read_results(make_sweep(tmp_path, points, extra=extra)))[-1]
    assert table.rows == [["point", "rm_bench"], ["base *", "62.5 (sd 0.0)"], ["p", "62.5"]]


def test_benchmark_results_are_compared_item_by_item(tmp_path):
    sweep = make_sweep(tmp_path, {"base": {None: {"s": [1, 0]}}, "p": {None: {"s": [1, 1]}}})
    about = {"benchmark": "ppe_preference", "items": "items.jsonl", "version": "1"}
    for name, right in (("base", 0.0), ("p", 1.0)):
        item = {"subset": "x", "rewards": [[1.0, 0.0]]}
        (tmp_path / name / "benchmarks").mkdir()
        items = [{"id": str(i), **item, "measures": {"accuracy": 1.0 if i else right}} for i in range(4)]
        write_jsonl(tmp_path / name / "benchmarks" / "items.jsonl", items)
        result = about | {"scores": {}, "counts": {}, "model": {}}
        (tmp_path / name / "benchmarks" / "ppe_preference.json").write_text(json.dumps(result))
    found = read_results(sweep).points[1].benchmarks["ppe_preference"]
    assert found.difference == pytest.approx(0.25)
    assert found.pairs == 4
    (tmp_path / "p" / "benchmarks" / "ppe_preference.json").write_text("{")
    result = read_results(sweep)
    assert result.points[1].benchmarks == {}
    assert any("ppe_preference" in note for note in result.notes)


# --- scaling --------------------------------------------------------------------------------------------------------


def test_a_power_law_is_found_again():
    pairs = [100, 400, 1600, 6400, 25600]
    found = fit(pairs, [0.9 - 2.0 * n**-0.5 for n in pairs])
    assert found.kind == "power"
    assert found.parameters == pytest.approx((0.9, 2.0, 0.5), rel=0.02)
    assert found.rms < 1e-4
    assert found(1600) == pytest.approx(0.85, abs=1e-3)


def test_three_amounts_give_a_line_in_log_n_and_two_nothing():
    found = fit([10, 100, 1000], [0.5, 0.6, 0.7])
    assert found.kind == "line"
    assert found(10_000) == pytest.approx(0.8)
    assert found.formula == "0.400 + 0.0434 log n"
    assert fit([10, 100], [0.5, 0.6]) is None


UNEVEN, FALLING = [0.9, 0.5, 0.8, 0.4, 0.7], [0.9, 0.8, 0.7, 0.6, 0.5]


@pytest.mark.parametrize("accuracy", [[0.5] * 5, UNEVEN, FALLING, [0.0] * 5, [1.0] * 5, [math.nan] * 5])
def test_a_bad_fit_is_no_failure(accuracy):
    found = fit([10, 20, 40, 80, 160], accuracy)
    assert found is None or all(math.isfinite(found(n)) for n in (10, 160))


def test_points_that_differ_in_their_amount_are_a_curve(tmp_path):
    amounts = {"half": 50, "whole": 100, "half-hot": 50, "whole-hot": 100}
    points = {name: {None: {"s": [1, 1, 0, 0]}} for name in amounts}
    changes = {name: {"data.fraction": amount / 100} for name, amount in amounts.items()}
    for name in ("half-hot", "whole-hot"):
        changes[name]["optimizer.learning_rate"] = 1.0
    result = read_results(make_sweep(tmp_path, points, baseline="whole", changes=changes, pairs=amounts))
    curves = curves_of(result, "eval/all/accuracy")
    assert [(c.label, c.pairs) for c in curves] == [("held-out accuracy", [50, 100]), ("learning_rate 1", [50, 100])]
    assert 'id="scaling"' in sweep_page(result)
    other = make_sweep(tmp_path / "x", points, baseline="whole", pairs=amounts)
    assert curves_of(read_results(other), "eval/all/accuracy") == []


# --- the page -------------------------------------------------------------------------------------------------------


def test_the_page_has_the_effects_and_every_run(sweep):
    page = sweep_page(read_results(sweep))
    assert "<script" not in page
    assert "<li>dropping s costs 28.0 ± " in page
    assert page.count("<figure>") == 3  # all, s, t
    assert "out of &lt;memory&gt;" in page
    assert 'id="scaling"' not in page


def test_report_draws_the_page_of_a_sweep_again(sweep, tmp_path, capsys):
    assert report_main([f"run={sweep.directory}"]) == 0
    assert (sweep.directory / "report.html").is_file()
    assert report_main([f"run={sweep.directory}", f"output={tmp_path / 'other.html'}"]) == 0
    assert (tmp_path / "other.html").read_text().count("<svg") == 3
    (sweep.directory / "sweep.json").write_text("{}")
    assert report_main([f"run={sweep.directory}"]) == 2
    assert "sweep.json: damaged" in capsys.readouterr().err


@pytest.mark.skipif(chromium() is None, reason="no Chromium on this machine (apt install chromium)")
@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_draws_every_figure_and_nothing_overflows(tmp_path, dark):
    right = {
        f"limit-{n}": {s: {"s": [1] * (30 + n + s) + [0] * (30 - n - s), "t": [1] * 40} for s in (0, 1)}
        for n in (5, 10, 20)
    }
    amounts = {"limit-5": 50, "limit-10": 1000, "limit-20": 20_000}
    changes = {name: {"data.sources.a_rather_long_name_of_a_source.limit": n} for name, n in amounts.items()}
    sweep = make_sweep(tmp_path / "sweep", right, baseline="limit-20", changes=changes, pairs=amounts)
    page = tmp_path / "page.html"
    page.write_text(sweep_page(read_results(sweep)))
    assert_drawn(page, tmp_path, dark, figures=6)  # effects and scaling, of all pairs, s and t
