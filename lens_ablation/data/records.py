"""Records of multiple-choice questions: reading them, telling them apart, and dividing them without overlap."""

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pandas as pd

from lens_ablation.data.sources import Rows, open_rows
from lens_ablation.errors import DamagedFile, LeakingSplits

Record = Mapping[str, Any]
"""One question: its fields by name, such as ``text``, ``options`` and ``label``."""

Records = str | Path | Sequence[Record] | Rows
"""Records as mappings, a JSON file, a ``datasets.Dataset``, or the name of a dataset on the hub."""

ANSWER_FIELDS = ("label", "answer")
"""Fields that give the answer away, and so are no part of the question."""


def read_records(records: Records, *, split: str = "train") -> list[dict[str, Any]]:
    """The records as a list; a ``.json`` file holds one list of them, a ``.jsonl`` file one to a line.

    Args:
        records: Mappings, a file, a dataset, or the name of a dataset on the hub.
        split: Which part of a dataset that has several.

    Raises:
        DamagedFile: the file is no JSON.
        ValueError: there are no records, or they are no mappings.
    """
    if isinstance(records, str | Path) and Path(records).suffix in (".json", ".jsonl"):
        found = _of_json(Path(records))
    elif isinstance(records, Sequence) and not isinstance(records, str):
        found = list(records)
    else:
        found = list(open_rows(records, split=split))
    if not found:
        raise ValueError("there are no records; give at least one question")
    strange = next((record for record in found if not isinstance(record, Mapping)), None)
    if strange is not None:
        raise ValueError(f"a record is a mapping of field names to values, got {type(strange).__name__}")
    return [dict(record) for record in found]


def _of_json(path: Path) -> list[Any]:
    if not path.is_file():
        raise ValueError(f"there is no file {str(path)!r}")
    text = path.read_text(encoding="utf-8")
    try:
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        found = json.loads(text)
    except ValueError as error:
        raise DamagedFile(f"{str(path)!r} is not JSON: {error}") from error
    if not isinstance(found, list):
        raise ValueError(f"{str(path)!r} holds a {type(found).__name__}; a file of records is one JSON list")
    return found


def question_of(record: Record, fields: Collection[str] | None = None, *, label: str = "label") -> str:
    """What a record asks, as text that is the same for two records that ask the same.

    Args:
        record: The record.
        fields: The fields that make the question; all but ``ANSWER_FIELDS`` and ``label`` by default.
        label: The field of the right answer.

    Raises:
        ValueError: the record lacks one of the fields.

    Example:
        >>> from lens_ablation.data.records import question_of
        >>> question_of({"text": "1 plus 1", "label": 0})
        '{"text": "1 plus 1"}'
    """
    if fields is None:
        asked = {name: value for name, value in record.items() if name not in {*ANSWER_FIELDS, label}}
    else:
        asked = {name: field_of(record, name) for name in fields}
    return json.dumps(asked, sort_keys=True, ensure_ascii=False, default=str)


def field_of(record: Record, name: str) -> Any:
    """A field of a record.

    Raises:
        ValueError: there is none of this name.
    """
    if name not in record:
        raise ValueError(f"a record has no field {name!r}; its fields are {', '.join(map(str, record))}")
    return record[name]


def leaks(
    splits: Mapping[str, Records], *, label: str = "label", fields: Collection[str] | None = None
) -> pd.DataFrame:
    """Which questions of a split also stand in another one, and which stand twice in their own.

    One row to an ordered pair of splits: ``records`` of ``split`` whose question occurs in ``also_in``, and their
    ``share`` of the split. Where both are the same split, ``records`` counts repetitions.

    Args:
        splits: Records by name of the split.
        label: The field of the right answer, which is no part of a question.
        fields: Fields that make a question; all but the label, ``label`` and ``answer`` by default.

    Raises:
        ValueError: a split is empty, or a record lacks one of the fields.

    Reference:
        The released files of MCEval8K (Zhao, Jiang, Yoshinaga, 2025, arXiv:2412.18053) hold whole test sets of some
        tasks in their training sets, because the second part of a shuffle was cut from its start.

    Example:
        >>> import lens_ablation as la
        >>> asked = [{"text": f"{i} plus 1", "label": 0} for i in range(4)]
        >>> found = la.leaks({"train": asked, "test": asked[:1]})
        >>> found[["split", "also_in", "records"]].values.tolist()
        [['train', 'train', 0], ['train', 'test', 1], ['test', 'train', 1], ['test', 'test', 0]]
    """
    counted = {
        name: Counter(question_of(one, fields, label=label) for one in read_records(part))
        for name, part in splits.items()
    }
    rows: list[dict[str, object]] = []
    for name, own in counted.items():
        total = sum(own.values())
        for other, theirs in counted.items():
            found = total - len(own) if other == name else sum(n for question, n in own.items() if question in theirs)
            rows.append({"split": name, "also_in": other, "records": found, "share": found / total})
    return pd.DataFrame(rows, columns=["split", "also_in", "records", "share"])


def require_no_leaks(
    splits: Mapping[str, Records], *, label: str = "label", fields: Collection[str] | None = None
) -> None:
    """Refuse splits that share questions or repeat them.

    Raises:
        LeakingSplits: they do; the message counts them.
    """
    table = leaks(splits, label=label, fields=fields)
    found = [
        f"{row['records']} records twice in {row['split']}"
        if row["split"] == row["also_in"]
        else f"{row['records']} of {row['split']} also in {row['also_in']}"
        for row in table.to_dict("records")
        if row["records"]
    ]
    if found:
        raise LeakingSplits(
            f"these splits leak: {'; '.join(found)}. Divide all records anew with disjoint_splits(records, sizes), "
            "or pass allow_leaks=True to reproduce numbers that were measured so"
        )


@dataclass(frozen=True, eq=False, repr=False)
class Splits(Mapping[str, list[dict[str, Any]]]):
    """Records divided without overlap, by name of the split.

    Attributes:
        parts: The records of each split, shuffled.
        label: The field of the label.
        n_duplicates: Records that were left out because their question had come before.
        n_contradictory: Records that were left out because their question comes with several labels.
        n_left: Records that no split has room for.
        seed: What they were shuffled with.

    Example:
        >>> import lens_ablation as la
        >>> asked = [{"text": f"{i} plus 1", "label": i % 2} for i in range(40)]
        >>> splits = la.disjoint_splits(asked, {"train": 20, "test": 10})
        >>> len(splits["train"]), splits.n_left, splits.is_balanced
        (20, 10, True)
    """

    parts: Mapping[str, list[dict[str, Any]]]
    label: str
    n_duplicates: int
    n_contradictory: int
    n_left: int
    seed: int

    def __getitem__(self, key: str) -> list[dict[str, Any]]:
        return self.parts[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)

    @property
    def is_balanced(self) -> bool:
        """Whether no label of any split has two records more than another label of all the records."""
        table = self.to_dataframe()
        return bool((table.groupby("split")["records"].agg(lambda n: n.max() - n.min()) <= 1).all())

    def to_dataframe(self) -> pd.DataFrame:
        """One row to a split and label: how many records."""
        labels = sorted({_label(one, self.label) for part in self.parts.values() for one in part})
        rows: list[tuple[str, str, int]] = []
        for name, part in self.parts.items():
            counts = Counter(_label(one, self.label) for one in part)
            rows += [(name, label, counts[label]) for label in labels]
        return pd.DataFrame(rows, columns=["split", "label", "records"])

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name} {len(part)}" for name, part in self.parts.items())
        return (
            f"Splits({sizes}; {'balanced' if self.is_balanced else 'not balanced'}, {self.n_duplicates} duplicates and "
            f"{self.n_contradictory} contradictory records left out)"
        )


def disjoint_splits(
    records: Records,
    sizes: Mapping[str, int],
    *,
    seed: int = 42,
    label: str = "label",
    fields: Collection[str] | None = None,
) -> Splits:
    """Records divided into splits that share no question, shuffled, with as many of each label as can be.

    A question that comes twice is kept once; one that comes with several labels is left out. Where a label has too
    few records for equal numbers, the splits share what there is in proportion to their sizes and are filled up with
    other labels: ``is_balanced`` and ``to_dataframe`` say so.

    Args:
        records: Mappings, a JSON file, a dataset, or its name on the hub; often grouped by label, hence the shuffle.
        sizes: Number of records of each split, by name.
        seed: Another seed gives another division.
        label: The field of the label.
        fields: Fields that make a question; all but ``label`` and ``answer`` by default.

    Raises:
        ValueError: more records are asked for than there are different questions, or a record has no label.

    Example:
        >>> import lens_ablation as la
        >>> asked = [{"text": f"{i} plus 1", "label": i % 2} for i in range(40)]
        >>> la.disjoint_splits(asked, {"train": 20, "test": 10})
        Splits(train 20, test 10; balanced, 0 duplicates and 0 contradictory records left out)
    """
    if not sizes or min(sizes.values()) < 1:
        raise ValueError(f"sizes gives each split a number of records, 1 or more; got {dict(sizes)}")
    listed = read_records(records)
    by_question: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for record in listed:
        by_question[question_of(record, fields, label=label)].append(record)
    clear = {question: same for question, same in by_question.items() if len({_label(one, label) for one in same}) == 1}
    kept = [same[0] for same in clear.values()]
    if sum(sizes.values()) > len(kept):
        raise ValueError(
            f"{sum(sizes.values())} records are asked for and there are {len(kept)} different questions "
            f"(of {len(listed)} records); ask for fewer"
        )
    n_clear = sum(map(len, clear.values()))
    return Splits(
        parts=_divided(kept, sizes, Random(f"splits/{seed}"), label),
        label=label,
        n_duplicates=n_clear - len(kept),
        n_contradictory=len(listed) - n_clear,
        n_left=len(kept) - sum(sizes.values()),
        seed=seed,
    )


def _label(record: Record, label: str) -> str:
    return str(field_of(record, label))


def _divided(
    records: Sequence[dict[str, Any]], sizes: Mapping[str, int], rng: Random, label: str
) -> dict[str, list[dict[str, Any]]]:
    """Records of each split: quotas of every label first, then whatever is left of the commonest."""
    waiting: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        waiting[_label(record, label)].append(record)
    for same in waiting.values():
        rng.shuffle(same)
    labels = sorted(waiting)
    quotas = {name: _equal_parts(size, labels, rng) for name, size in sizes.items()}
    parts: dict[str, list[dict[str, Any]]] = {name: [] for name in sizes}
    for one in labels:
        wanted = sum(quota[one] for quota in quotas.values())
        there = min(1.0, len(waiting[one]) / max(1, wanted))
        for name, quota in quotas.items():
            parts[name] += [waiting[one].pop() for _ in range(int(quota[one] * there))]
    for name, size in sizes.items():
        while len(parts[name]) < size:
            counts = Counter(_label(record, label) for record in parts[name])
            rarest = min((one for one in labels if waiting[one]), key=lambda one: (counts[one], one))
            parts[name].append(waiting[rarest].pop())
        rng.shuffle(parts[name])
    return parts


def _equal_parts(size: int, labels: Sequence[str], rng: Random) -> dict[str, int]:
    more = set(rng.sample(labels, size % len(labels)))
    return {one: size // len(labels) + (one in more) for one in labels}
