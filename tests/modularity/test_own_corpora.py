"""Subsets of anybody's corpus, read from local files by ``datasets``: forgotten on rows that were not scored."""

import json

import datasets
import pytest

import lens_ablation as la
from lens_ablation.data import corpus
from lens_ablation.errors import LeakingSplits
from lens_ablation.models.protocol import LensModel

SUBSETS = ("prose", "code", "arithmetic")


def texts_of(name: str) -> list[str]:
    return corpus.documents(name, 16, length=48, seed=3, split="train")


@pytest.fixture(scope="module", params=["jsonl", "parquet"])
def parts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> datasets.DatasetDict:
    """A corpus on disk, subset by subset in one file, cut in two."""
    folder = tmp_path_factory.mktemp("corpus")
    lines = [{"text": text, "subset": name} for name in SUBSETS for text in texts_of(name)]
    path = folder / f"corpus.{request.param}"
    if request.param == "jsonl":
        path.write_text("".join(json.dumps(one) + "\n" for one in lines), encoding="utf-8")
    else:
        datasets.Dataset.from_list(lines).to_parquet(path)
    kind = "json" if request.param == "jsonl" else "parquet"
    rows = datasets.load_dataset(kind, data_files=str(path), split="train", cache_dir=str(folder / "cache"))
    return rows.train_test_split(test_size=0.5, seed=0)


def subset(model: LensModel, rows: datasets.Dataset, *names: str) -> la.Task:
    chosen = rows.filter(lambda row: row["subset"] in names)
    return la.tasks.next_token(model, chosen, name=" and ".join(names))


def four(model: LensModel, parts: datasets.DatasetDict) -> dict[str, la.Task]:
    return {
        f"{use}{end}": subset(model, parts[half], *names)
        for use, names in (("forget", ("code",)), ("retain", ("prose", "arithmetic")))
        for end, half in (("", "train"), ("_test", "test"))
    }


@pytest.mark.model
def test_a_subset_is_the_task_of_its_texts(parts: datasets.DatasetDict):
    model = la.load_model("tiny-lm")
    kept = [text for text in parts["train"]["text"] if text in texts_of("code")]
    assert 0 < len(kept) < 16
    task = subset(model, parts["train"], "code")
    assert task.fingerprint == la.tasks.next_token(model, kept).fingerprint
    use = la.neuron_use(model, task, progress=False)
    assert use.count == int(task.attention_mask.sum())


@pytest.mark.model
def test_a_subset_is_forgotten_on_rows_that_were_not_scored(parts: datasets.DatasetDict):
    model = la.load_model("tiny-lm")
    data = four(model, parts)
    assert sum(task.n_examples for task in data.values()) == 48
    found = la.prune_selectively(
        model, **data, fraction_per_step=0.1, steps=2, rescore=False, n_random=1, progress=False
    )
    assert found.settings["shared_examples"] == 0
    assert float(found.ratio[0, 2]) > 5
    assert float(found.forget_drop[1:, 2].max()) < 0.5 * float(found.forget_drop[0, 2])
    by_name = {half: {name: subset(model, parts[half], name) for name in SUBSETS} for half in ("train", "test")}
    cross = la.cross_pruning(model, by_name["train"], by_name["test"], fraction=0.2, progress=False)
    assert cross.damage.argmax(axis=1).tolist() == [0, 1, 2]


def test_rows_on_both_sides_are_refused(parts: datasets.DatasetDict):
    model = la.load_model("tiny-lm")
    data = four(model, parts)
    twice = datasets.concatenate_datasets([parts["test"], parts["train"].select(range(3))])
    shared = sum(name == "code" for name in parts["train"]["subset"][:3])
    leaking = {
        **data,
        "forget_test": subset(model, twice, "code"),
        "retain_test": subset(model, twice, "prose", "arithmetic"),
    }
    with pytest.raises(LeakingSplits, match="3 examples of the tests"):
        la.prune_selectively(model, **leaking, steps=1, progress=False)
    allowed = la.prune_selectively(
        model,
        **{**data, "forget_test": leaking["forget_test"]},
        steps=1,
        rescore=False,
        n_random=0,
        allow_shared=True,
        progress=False,
    )
    assert allowed.settings["shared_examples"] == shared
