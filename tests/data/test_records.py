"""Records divided without overlap, and overlaps found."""

import json
from collections import Counter
from pathlib import Path

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

import lens_ablation as la
from lens_ablation.data.records import question_of, read_records
from lens_ablation.errors import DamagedFile, LeakingSplits


def asked(n: int, n_labels: int = 2, start: int = 0) -> list[dict]:
    """``n`` records grouped by label, as the released files are."""
    return sorted(({"text": f"question {i}", "label": i % n_labels} for i in range(start, start + n)), key=label_of)


def label_of(record: dict) -> int:
    return record["label"]


def questions(records: list[dict]) -> set[str]:
    return {question_of(record) for record in records}


@given(
    labels=st.lists(st.integers(0, 3), min_size=12, max_size=80),
    repeats=st.integers(0, 5),
    seed=st.integers(0, 5),
)
@settings(max_examples=40, deadline=None)
def test_splits_are_disjoint_and_as_balanced_as_can_be(labels: list[int], repeats: int, seed: int):
    records = [{"text": f"q{i}", "label": label} for i, label in enumerate(labels)]
    splits = la.disjoint_splits(records + records[:repeats], {"train": 6, "test": 4}, seed=seed)
    train, test = splits["train"], splits["test"]
    assert (len(train), len(test)) == (6, 4)
    assert splits.n_duplicates == repeats
    assert splits.n_left == len(labels) - 10
    assert not questions(train) & questions(test)
    assert len(questions(train)) == 6
    assert len(questions(test)) == 4
    counts = Counter(labels)
    if min(counts.values()) >= 10:
        assert splits.is_balanced
    table = splits.to_dataframe()
    assert table["records"].sum() == 10


def test_splits_are_shuffled_and_the_same_for_the_same_seed():
    records = asked(200)
    first, again = (la.disjoint_splits(records, {"train": 100, "test": 50}, seed=3) for _ in range(2))
    other = la.disjoint_splits(records, {"train": 100, "test": 50}, seed=4)
    assert first["train"] == again["train"]
    assert first["train"] != other["train"]
    assert Counter(map(label_of, first["train"])) == {0: 50, 1: 50}
    assert Counter(map(label_of, first["test"])) == {0: 25, 1: 25}
    # the first rows hold both labels, which those of the file do not
    assert set(map(label_of, records[:20])) == {0}
    assert set(map(label_of, first["train"][:20])) == {0, 1}


def test_a_label_with_too_few_records_is_shared_out_and_said():
    records = [{"text": f"q{i}", "label": int(i < 9)} for i in range(100)]
    splits = la.disjoint_splits(records, {"train": 40, "test": 20})
    assert not splits.is_balanced
    assert "not balanced" in repr(splits)
    table = splits.to_dataframe().pivot(index="split", columns="label", values="records")
    assert table.loc[["train", "test"], "1"].tolist() == [6, 3]  # 9 records for 20 + 10 places
    assert table.to_numpy().sum() == 60


def test_questions_with_several_labels_are_left_out():
    records = [*asked(20), {"text": "question 0", "label": 1}, {"text": "question 1", "label": 1}]
    splits = la.disjoint_splits(records, {"train": 10, "test": 5})
    assert splits.n_contradictory == 2
    assert splits.n_duplicates == 1
    assert '{"text": "question 0"}' not in questions(splits["train"]) | questions(splits["test"])


def test_fields_that_make_a_question_can_be_named():
    records = [{"id": i, "text": f"q{i % 10}", "label": i % 2} for i in range(20)]
    assert la.disjoint_splits(records, {"train": 18}).n_duplicates == 0
    assert la.disjoint_splits(records, {"train": 8}, fields=["text"]).n_duplicates == 10


def test_leaks_are_counted_as_the_release_has_them():
    """A second part cut from the start of the same shuffle, as in the released files, lies within the first."""
    shuffled = asked(60)
    train, rest = shuffled[:40], shuffled[: 60 - 40]
    valid, test = rest[:10], rest[10:]
    table = la.leaks({"train": train, "valid": valid, "test": test}).set_index(["split", "also_in"])
    assert table.loc[("test", "train"), "records"] == 10
    assert table.loc[("test", "train"), "share"] == 1.0
    assert table.loc[("train", "test"), "share"] == 0.25
    assert table.loc[("test", "valid"), "records"] == 0
    assert la.leaks({"one": [train[0], train[0], train[1]]})["records"].tolist() == [1]


def test_an_overlap_that_another_label_hides_is_found():
    table = la.leaks({"train": [{"text": "a", "label": 0}], "test": [{"text": "a", "label": 1}]})
    assert table["records"].tolist() == [0, 1, 1, 0]


def test_a_label_of_another_name_is_no_part_of_the_question():
    """Such as ``hallucination``: a question that stands in both splits with other labels is the same question."""
    train, test = [{"text": "a", "gold": "no"}], [{"text": "a", "gold": "yes"}]
    assert la.leaks({"train": train, "test": test}, label="gold")["records"].tolist() == [0, 1, 1, 0]
    records = [{"text": f"compare {i} 50 : {i}", "gold": int(i < 50)} for i in range(40, 60)]
    options = {"candidates": ["exceeds", "undercuts"], "template": "{text}", "separator": " ", "label": "gold"}
    changed = [{**records[0], "gold": 0}]
    with pytest.raises(LeakingSplits, match="1 of test also in train"):
        la.multiple_choice_splits({"train": records, "test": changed}, la.load_model("tiny-lm"), **options)
    splits = la.disjoint_splits([*records, *changed], {"train": 10, "test": 5}, label="gold")
    assert splits.n_contradictory == 2


def test_builders_refuse_leaking_splits_unless_told_otherwise():
    model = la.load_model("tiny-lm")
    records = [{"text": f"compare {i} 50 : {i}", "label": int(i < 50)} for i in range(40, 60)]
    splits = {"train": records, "test": records[:3]}
    options = {"candidates": ["exceeds", "undercuts"], "template": "{text}", "separator": " "}
    with pytest.raises(LeakingSplits, match=r"3 of test also in train.*disjoint_splits"):
        la.multiple_choice_splits(splits, model, **options)
    with pytest.raises(LeakingSplits, match="1 records twice in train"):
        la.multiple_choice_splits({"train": [*records, records[0]]}, model, **options)
    assert la.multiple_choice_splits(splits, model, allow_leaks=True, **options)["test"].n_examples == 3
    clean = la.multiple_choice_splits(la.disjoint_splits(records, {"train": 8, "test": 4}), model, **options)
    assert {name: choices.n_examples for name, choices in clean.items()} == {"train": 8, "test": 4}


def test_records_are_read_from_lists_files_and_datasets(tmp_path: Path):
    records = asked(4)
    (tmp_path / "one.json").write_text(json.dumps(records))
    (tmp_path / "two.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n")
    sources = [records, tmp_path / "one.json", str(tmp_path / "one.json"), tmp_path / "two.jsonl"]
    for source in [*sources, Dataset.from_list(records)]:
        assert read_records(source) == records


def test_bad_records_say_what_to_do(tmp_path: Path):
    (tmp_path / "cut.json").write_text('[{"text": ')
    with pytest.raises(DamagedFile, match="is not JSON"):
        read_records(tmp_path / "cut.json")
    (tmp_path / "one.json").write_text('{"text": "a"}')
    with pytest.raises(ValueError, match="one JSON list"):
        read_records(tmp_path / "one.json")
    with pytest.raises(ValueError, match="no file"):
        read_records(tmp_path / "none.json")
    with pytest.raises(ValueError, match="no records"):
        read_records([])
    with pytest.raises(ValueError, match="30 records are asked for and there are 20"):
        la.disjoint_splits(asked(20), {"train": 30})
    with pytest.raises(ValueError, match="1 or more"):
        la.disjoint_splits(asked(20), {"train": 0})
    with pytest.raises(ValueError, match="no field 'gold'"):
        la.disjoint_splits(asked(20), {"train": 2}, label="gold")
    with pytest.raises(ValueError, match="no field 'body'"):
        la.leaks({"train": asked(2)}, fields=["body"])
