"""Labelled images of anybody's data."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Sequence, Value
from torch import Tensor

from lens_ablation.data.images import image_classification, pixels_of
from lens_ablation.errors import UnknownName

pytestmark = pytest.mark.model

PIXELS = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = [3, 1, 0, 4, 2]
NAMES = ["cat", "dog", "fox", "hen", "owl"]


def dataset(labels: list[Any] = LABELS, images: Any = PIXELS) -> Dataset:
    return Dataset.from_dict({"image": images.tolist(), "label": labels})


def halved(images: list[Any], return_tensors: str) -> dict[str, Tensor]:
    """What an image processor does: pictures of any type in, normalised pixels out."""
    assert return_tensors == "pt"
    return {"pixel_values": torch.tensor(np.stack(images), dtype=torch.float32)[:, :, ::2, ::2] / 255 - 0.5}


def processor_folder(folder: Path) -> Path:
    settings = {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": 8, "width": 8},
        "image_mean": [0.5],
        "image_std": [0.5],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture
def named_vit(vit, monkeypatch):
    """The model with names of its classes, in an order of its own."""
    order = {"owl": 0, "hen": 1, "fox": 2, "dog": 3, "cat": 4}
    monkeypatch.setattr(vit.original_model.config, "label2id", order)
    return vit


@pytest.mark.parametrize("kind", ["memory", "stream", "parquet"])
def test_images_come_with_their_classes(vit, kind, tmp_path):
    source: Any = dataset()
    if kind == "stream":
        source = source.to_iterable_dataset()
    if kind == "parquet":
        source.to_parquet(tmp_path / "images.parquet")
        source = tmp_path / "images.parquet"
    task = image_classification(vit, source)
    torch.testing.assert_close(task.inputs, PIXELS)
    assert task.answers.tolist() == LABELS
    part = image_classification(vit, source, n=2, skip=1)
    torch.testing.assert_close(part.inputs, PIXELS[1:3])
    assert part.answers.tolist() == LABELS[1:3]


def test_arrays_of_numpy_and_torch_columns(vit):
    for form in ("numpy", "torch"):
        torch.testing.assert_close(image_classification(vit, dataset().with_format(form)).inputs, PIXELS)


def test_other_columns_by_name(vit):
    renamed = dataset().rename_columns({"image": "img", "label": "fine"})
    assert image_classification(vit, renamed, image_column="img", label_column="fine").answers.tolist() == LABELS
    with pytest.raises(UnknownName, match="unknown column 'image'; nearest: img"):
        image_classification(vit, renamed, label_column="fine")


def test_a_processor_makes_the_pixels(vit):
    pictures = torch.randint(0, 256, (40, 1, 16, 16), dtype=torch.uint8)
    task = image_classification(vit, dataset([0, 1, 2, 3, 4] * 8, pictures), processor=halved)
    torch.testing.assert_close(task.inputs, pictures[:, :, ::2, ::2].float() / 255 - 0.5)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_pictures_go_through_the_processor_of_a_folder(vit, mode, tmp_path):
    image = pytest.importorskip("PIL.Image", reason="until Pillow is among the packages of the test environment")
    gray = np.tile(np.arange(0, 240, 30, dtype=np.uint8), (8, 1))
    pictures = [image.fromarray(gray).convert(mode)] * 2
    source = Dataset.from_dict({"image": pictures, "label": [0, 1]})
    task = image_classification(vit, source, processor=processor_folder(tmp_path))
    torch.testing.assert_close(task.inputs[0, 0], torch.from_numpy(gray / 127.5 - 1).float(), rtol=0, atol=1e-5)


def test_a_folder_without_a_processor_is_named(vit, tmp_path):
    pytest.importorskip("PIL", reason="until Pillow is among the packages of the test environment")
    with pytest.raises(ValueError, match="gave no image processor"):
        image_classification(vit, dataset(), processor=tmp_path)


def test_classes_are_matched_by_name_where_both_list_the_same(named_vit):
    features = Features({"image": Sequence(Sequence(Sequence(Value("float32")))), "label": ClassLabel(names=NAMES)})
    task = image_classification(named_vit, dataset().cast(features))
    order = named_vit.original_model.config.label2id
    assert task.answers.tolist() == [order[NAMES[label]] for label in LABELS]
    in_words = image_classification(named_vit, dataset([NAMES[label] for label in LABELS]))
    assert in_words.answers.tolist() == task.answers.tolist()


def test_other_class_names_leave_the_ids_alone(named_vit):
    features = Features(
        {"image": Sequence(Sequence(Sequence(Value("float32")))), "label": ClassLabel(names=["a", "b", "c", "d", "e"])}
    )
    assert image_classification(named_vit, dataset().cast(features)).answers.tolist() == LABELS


def test_an_unknown_class_name_lists_the_nearest(named_vit):
    with pytest.raises(UnknownName, match="unknown class 'foxes'; nearest: fox"):
        image_classification(named_vit, dataset(["cat", "dog", "foxes", "hen", "owl"]))


@pytest.mark.parametrize("labels", [[0, 1, 2, 3, 5], [0, 1, 2, 3, -1], [0.5, 1.0, 2.0, 3.0, 4.0]])
def test_class_ids_that_the_model_does_not_have_are_refused(vit, labels):
    with pytest.raises(ValueError, match=r"0\.\.4"):
        image_classification(vit, dataset(labels))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "n must be"),
        ({"skip": -1}, "skip must be"),
        ({"n": 6}, "ended after 5 images"),
        ({"skip": 5}, "ended after 0 images"),
    ],
)
def test_impossible_requests_are_refused(vit, options, message):
    with pytest.raises(ValueError, match=message):
        image_classification(vit, dataset(), **options)


def test_a_name_on_the_hub_needs_a_number(vit):
    with pytest.raises(ValueError, match="say n="):
        image_classification(vit, "somebody/pictures")


def test_language_models_read_no_images(lm):
    with pytest.raises(ValueError, match="language model"):
        image_classification(lm, dataset())


def test_pictures_without_a_processor_are_refused(vit):
    for images in ([object()], [np.zeros((1, 8, 8), dtype=np.uint8)]):
        with pytest.raises(ValueError, match="say processor="):
            pixels_of(vit, images)


def test_a_processor_of_another_model_gives_the_wrong_size(vit):
    with pytest.raises(ValueError, match="resize them"):
        pixels_of(vit, list(PIXELS.numpy()), processor=halved)
