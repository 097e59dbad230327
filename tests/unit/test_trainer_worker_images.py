"""Images: read from files, divided, resized, and prepared by a graph as by Python."""

from __future__ import annotations

import contextlib
import errno
import gzip
import io
import os
import shutil
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from modelrail_trainer.failure import DataError, GateFailed
from modelrail_trainer.handover.artifact import Signature
from modelrail_trainer.spec import (
    Color,
    IdxFiles,
    ImageDataset,
    ImageFolder,
    ImageSize,
    PixelScale,
    Split,
    Task,
)
from modelrail_trainer.worker.export.exporter import export, exported_module, signature_of
from modelrail_trainer.worker.export.model_file import leaks
from modelrail_trainer.worker.images import dataset as dataset_module
from modelrail_trainer.worker.images import decoding
from modelrail_trainer.worker.images.acceptance import check_end_to_end
from modelrail_trainer.worker.images.dataset import Images, load_images
from modelrail_trainer.worker.images.decoding import Unusable, decode
from modelrail_trainer.worker.images.export import RawImages
from modelrail_trainer.worker.images.folder import FolderSource
from modelrail_trainer.worker.images.graph import end_to_end, end_to_end_signature
from modelrail_trainer.worker.images.resize import resize, weights
from modelrail_trainer.worker.images.scaling import PixelHistogram, fit_scaling
from modelrail_trainer.worker.images.source import with_color
from modelrail_trainer.worker.training_data import TrainingData

HALF = Split(validation_fraction=0.25, test_fraction=0.25, seed=3)
CHANCE = np.random.default_rng(0)
SIDES = st.integers(1, 60)


def noise(*shape: int) -> Any:
    return CHANCE.integers(0, 256, shape, np.uint8)


def save(path: Path, pixels: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def class_folders(root: Path, images: int = 4, *shape: int) -> Path:
    for name in ("cat", "dog"):
        for number in range(images):
            save(root / name / f"{number}.png", noise(*(shape or (6, 5))))
    return root


def of_folder(root: Path, **fields: Any) -> ImageDataset:
    divided = fields.pop("divided", False)
    return ImageDataset(source=ImageFolder(path=str(root), divided=divided), **fields)


def loaded(dataset: ImageDataset, folder: Path, split: Split = HALF, **options: Any) -> Images:
    shutil.rmtree(folder / "data", ignore_errors=True)
    (folder / "data").mkdir()
    return load_images(dataset, split, folder / "data", **options)


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    return class_folders(tmp_path / "animals")


# Folders


def test_each_image_is_in_one_part_with_the_class_of_its_folder(
    animals: Path, tmp_path: Path
) -> None:
    images = loaded(of_folder(animals), tmp_path)
    assert images.labels == ("cat", "dog")
    assert [sorted(part.targets) for part in images.parts] == [[0, 0, 1, 1], [0, 1], [0, 1]]
    rows = {row.tobytes(): int(target) for part in images.parts for row, target in
            zip(part.inputs, part.targets, strict=True)}  # fmt: skip
    for number, name in enumerate(images.labels):
        for path in (animals / name).iterdir():
            assert rows.pop(np.asarray(Image.open(path)).tobytes()) == number
    assert not rows


def test_the_division_follows_from_the_seed(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "animals", 20)
    first, again = (loaded(of_folder(root), tmp_path).parts[1].inputs.tobytes() for _ in "ab")
    other = loaded(of_folder(root), tmp_path, replace(HALF, seed=4))
    assert first == again
    assert other.parts[1].inputs.tobytes() != first


def test_colour_images_have_their_channels_in_front(tmp_path: Path) -> None:
    images = loaded(of_folder(class_folders(tmp_path / "a", 4, 6, 5, 3)), tmp_path)
    assert images.color is Color.RGB
    assert images.parts[0].inputs.shape == (4, 3, 6, 5)


def test_a_colour_that_is_asked_for_is_what_every_image_becomes(
    animals: Path, tmp_path: Path
) -> None:
    save(animals / "cat" / "0.png", noise(6, 5, 3))
    rgb = loaded(of_folder(animals, color=Color.RGB), tmp_path)
    assert rgb.parts[0].inputs.shape == (4, 3, 6, 5)
    assert loaded(of_folder(animals, color=Color.GREY), tmp_path).parts[0].inputs.shape == (4, 6, 5)


def test_grey_is_what_pillow_makes_of_colour() -> None:
    pixels = noise(20, 20, 3)
    expected = np.asarray(Image.fromarray(pixels).convert("L"))
    np.testing.assert_array_equal(with_color(pixels, Color.GREY), expected)


def test_a_folder_that_is_divided_keeps_its_parts(animals: Path, tmp_path: Path) -> None:
    root = tmp_path / "divided"
    for part in ("train", "validation", "test"):
        shutil.copytree(animals, root / part)
    save(root / "test" / "cat" / "more.png", noise(6, 5))
    images = loaded(of_folder(root, divided=True), tmp_path)
    assert [len(part) for part in images.parts] == [8, 8, 9]


def test_a_part_that_is_not_there_is_taken_from_the_training_images(
    animals: Path, tmp_path: Path
) -> None:
    root = tmp_path / "divided"
    for part in ("train", "test"):
        shutil.copytree(animals, root / part)
    images = loaded(of_folder(root, divided=True), tmp_path)
    assert [len(part) for part in images.parts] == [6, 2, 8]


def test_images_of_one_size_are_asked_for_and_the_first_other_one_is_named(
    animals: Path, tmp_path: Path
) -> None:
    save(animals / "dog" / "2.png", noise(7, 5))
    with pytest.raises(
        DataError, match=r"'dog/2.png' has 7 by 5 pixels.*set dataset\.images\.size"
    ):
        loaded(of_folder(animals), tmp_path)
    size = ImageSize(height=3, width=4)
    assert loaded(of_folder(animals, size=size), tmp_path).parts[0].inputs.shape == (4, 3, 4)


def test_the_digest_is_of_names_and_bytes(animals: Path, tmp_path: Path) -> None:
    first = loaded(of_folder(animals), tmp_path).sha256
    os.utime(animals / "cat" / "1.png", (1, 1))
    assert loaded(of_folder(animals), tmp_path).sha256 == first
    (animals / "cat" / "1.png").rename(animals / "cat" / "1b.png")
    renamed = loaded(of_folder(animals), tmp_path).sha256
    assert renamed != first
    save(animals / "cat" / "1b.png", noise(6, 5))
    assert loaded(of_folder(animals), tmp_path).sha256 not in (first, renamed)


def bomb(path: Path) -> None:
    # 30,000 by 30,000 pixels in some kilobytes.
    Image.new("1", (30_000, 30_000)).save(path)


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def of_16_bits(path: Path) -> None:
    Image.fromarray(noise(6, 5).astype(np.uint16)).save(path)


def link_out(path: Path) -> None:
    outside = path.parents[2] / "outside.png"
    save(outside, noise(6, 5))
    path.unlink()
    path.symlink_to(outside)


def link_to_nothing(path: Path) -> None:
    path.unlink()
    path.symlink_to("absent.png")


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


UNUSABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda path: path.write_bytes(b""), "is empty"),
    "no image": (lambda path: path.write_text("hello"), "cannot be decoded: no known format"),
    "truncated": (half, "cannot be decoded"),
    "bomb": (bomb, "has more than 64000000 pixels"),
    "large": (lambda path: Image.new("1", (9_000, 9_000)).save(path), "has more than 64000000 pix"),
    "long": (lambda path: Image.new("1", (16_385, 1)).save(path), "has a side of more than 16384"),
    "16 bits": (of_16_bits, "is not of 8 bits a channel, but of mode 'I;16'"),
    "coloured": (lambda path: save(path, noise(6, 5, 3)), "is rgb, unlike the first"),
    "link out": (link_out, "is a link that leads out of the folders that may be read"),
    "link to nothing": (link_to_nothing, "is a link that leads out"),
    "folder": (folder, "is no file"),
    "pipe": (pipe, "is no file"),
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_an_image_that_cannot_be_used_fails_the_job_or_is_left_out(
    animals: Path, tmp_path: Path, kind: str
) -> None:
    hurt, reason = UNUSABLE[kind]
    hurt(animals / "dog" / "3.png")
    with pytest.raises(DataError) as caught:
        loaded(of_folder(animals), tmp_path)
    assert f"the image 'dog/3.png' {reason}" in str(caught.value)
    assert "skip_unusable_images" in str(caught.value)
    assert str(tmp_path) not in str(caught.value)
    images = loaded(of_folder(animals, skip_unusable_images=True), tmp_path)
    assert sum(map(len, images.parts)) == 7
    assert sum(images.unusable.values()) == 1
    assert images.remarks[-1].startswith(f"1 images were left out: one {reason[:20]}")


def test_an_image_that_may_not_be_read_is_told_as_one(
    animals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_open = os.open

    def refuse(path: Any, *arguments: Any, **options: Any) -> int:
        if str(path).endswith("dog/3.png"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real_open(path, *arguments, **options)

    monkeypatch.setattr(os, "open", refuse)  # root may read everything
    with pytest.raises(DataError, match=r"'dog/3.png' cannot be read: Permission denied; mend"):
        loaded(of_folder(animals), tmp_path)
    images = loaded(of_folder(animals, skip_unusable_images=True), tmp_path)
    assert sum(map(len, images.parts)) == 7


def test_a_link_within_the_roots_is_followed(animals: Path, tmp_path: Path) -> None:
    link_out(animals / "dog" / "3.png")
    source = ImageFolder(path=str(animals), readable=(str(tmp_path),))
    assert sum(map(len, loaded(ImageDataset(source=source), tmp_path).parts)) == 8


def test_a_folder_that_is_a_link_out_of_the_roots_is_refused(animals: Path, tmp_path: Path) -> None:
    class_folders(tmp_path / "outside")
    (animals / "bird").symlink_to(tmp_path / "outside" / "cat")
    with pytest.raises(DataError, match=r"'bird' is a link that leads out"):
        loaded(of_folder(animals, skip_unusable_images=True), tmp_path)


def test_what_no_image_can_be_used_of_is_told_with_the_first(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "a")
    for path in root.glob("*/*.png"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"no training image can be used; the image '.*' is empty"):
        loaded(of_folder(root, skip_unusable_images=True), tmp_path)


def test_a_class_whose_training_images_are_all_left_out_is_named(
    animals: Path, tmp_path: Path
) -> None:
    for path in (animals / "dog").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"class 'dog' has no training image that can be used"):
        loaded(of_folder(animals, skip_unusable_images=True), tmp_path)


def empty_class(root: Path) -> None:
    (root / "bird").mkdir()


def one_class(root: Path) -> None:
    shutil.rmtree(root / "dog")


def two_images(root: Path) -> None:
    for number in (2, 3):
        (root / "dog" / f"{number}.png").unlink()


def no_text(root: Path) -> None:
    (root / "dog").rename(root / os.fsdecode(b"d\xffg"))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (empty_class, r"the folder 'bird' has no images; remove it"),
        (one_class, r"expected images of at least 2 classes, got 1"),
        (two_images, r"class 'dog': expected at least 3 images, so that train and .* got 2"),
        (no_text, r"has a name that is no text"),
        (shutil.rmtree, r"the folder of the images cannot be read: No such file"),
    ],
)
def test_folders_that_cannot_be_divided_into_parts_and_classes_are_told(
    animals: Path, tmp_path: Path, change: Callable[[Path], None], expected: str
) -> None:
    change(animals)
    with pytest.raises(DataError, match=expected):
        loaded(of_folder(animals), tmp_path)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (["train", "valid"], "expected the folders train, validation and test.*got 'valid'"),
        (["test"], "expected a folder train"),
    ],
)
def test_folders_of_parts_that_are_misnamed_or_missing_are_told(
    animals: Path, tmp_path: Path, parts: list[str], expected: str
) -> None:
    for part in parts:
        shutil.copytree(animals, tmp_path / "divided" / part)
    with pytest.raises(DataError, match=expected):
        loaded(of_folder(tmp_path / "divided", divided=True), tmp_path)


def test_files_that_are_no_images_are_counted_and_hidden_ones_are_not_seen(
    animals: Path, tmp_path: Path
) -> None:
    (animals / "cat" / "notes.txt").write_text("mew")
    (animals / "cat" / ".hidden.png").write_text("")
    (animals / ".git").mkdir()
    images = loaded(of_folder(animals), tmp_path)
    assert images.remarks == ("1 files are no images by their endings, and were not looked at",)


@pytest.mark.parametrize("what", ["vanishes", "changes", "comes"])
def test_a_file_that_vanishes_changes_or_comes_meanwhile_fails_the_job(
    animals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    path = animals / "dog" / ("new.png" if what == "comes" else "3.png")

    def change(content: bytes) -> Any:
        if what == "vanishes":
            path.unlink(missing_ok=True)
        else:
            save(path, noise(6, 5))
        return decode(content)

    monkeypatch.setattr("modelrail_trainer.worker.images.folder.decode", change)
    with pytest.raises(DataError, match=rf"'dog/{path.name}' came, went or was changed") as raised:
        loaded(of_folder(animals, skip_unusable_images=True), tmp_path)
    assert str(raised.value).endswith("; clone the job when nobody writes it any more")


def test_a_sample_has_images_of_every_part_and_class(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "a", 40)
    images = loaded(of_folder(root), tmp_path, max_rows=20)
    assert [len(part) for part in images.parts] == [10, 5, 5]
    assert all(set(part.targets) == {0, 1} for part in images.parts)


# Decoding


@pytest.mark.parametrize(
    ("mode", "shape"),
    [("1", ()), ("L", ()), ("LA", ()), ("P", (3,)), ("RGB", (3,)), ("RGBA", (3,)), ("CMYK", (3,))],
)
def test_every_mode_of_8_bits_becomes_grey_or_colour(mode: str, shape: tuple[int, ...]) -> None:
    file = io.BytesIO()
    Image.new(mode, (5, 6)).save(file, "TIFF")
    assert decode(file.getvalue()).shape == (6, 5, *shape)


def test_an_image_is_turned_upright() -> None:
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.new("L", (5, 6)).save(file, "JPEG", exif=exif)
    assert decode(file.getvalue()).shape == (5, 6)


@given(st.binary(min_size=1, max_size=200), st.integers(0, 300))
@settings(max_examples=200)
def test_whatever_the_bytes_are_they_are_pixels_or_a_reason(garbage: bytes, place: int) -> None:
    file = io.BytesIO()
    Image.new("RGB", (9, 9)).save(file, "PNG")
    content = file.getvalue()
    spoiled = content[:place] + garbage + content[place + len(garbage) :]
    with contextlib.suppress(Unusable):
        assert decode(spoiled).dtype == np.uint8


def test_only_formats_of_images_are_decoded() -> None:
    with pytest.raises(Unusable, match="no known format"):
        decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 5\n%%EndComments\n")


# Idx


def idx(path: Path, values: Any, *, kind: int = 8) -> str:
    header = bytes([0, 0, kind, values.ndim])
    header += np.array(values.shape, ">u4").tobytes()
    content = header + values.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return str(path)


def pair(
    tmp_path: Path, images: int = 20, name: str = "a", ending: str = ""
) -> tuple[str, str, Any, Any]:
    pixels, labels = noise(images, 6, 5), np.resize(np.array([0, 2], np.uint8), images)
    return (
        idx(tmp_path / f"{name}-images{ending}", pixels),
        idx(tmp_path / f"{name}-labels{ending}", labels),
        pixels,
        labels,
    )


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_idx_files_are_read_plain_and_compressed(tmp_path: Path, ending: str) -> None:
    images, labels, pixels, values = pair(tmp_path, ending=ending)
    found = loaded(ImageDataset(source=IdxFiles(images=images, labels=labels)), tmp_path)
    assert found.labels == ("0", "2")
    known = {image.tobytes(): int(value) // 2 for image, value in zip(pixels, values, strict=True)}
    for part in found.parts:
        for row, target in zip(part.inputs, part.targets, strict=True):
            assert known.pop(row.tobytes()) == target
    assert not known


def test_a_pair_of_its_own_is_the_test_part_and_classes_have_names(tmp_path: Path) -> None:
    images, labels, _, _ = pair(tmp_path)
    test_images, test_labels, pixels, _ = pair(tmp_path, 6, "test")
    files = IdxFiles(
        images=images,
        labels=labels,
        test_images=test_images,
        test_labels=test_labels,
        class_names=("zero", "one", "two"),
    )
    with pytest.raises(DataError, match=r"class 'one': expected at least 2 images"):
        loaded(ImageDataset(source=files), tmp_path)
    idx(Path(labels), np.resize(np.arange(3, dtype=np.uint8), 20))
    found = loaded(ImageDataset(source=files, color=Color.RGB), tmp_path)
    assert found.labels == ("zero", "one", "two")
    assert [len(part) for part in found.parts] == [14, 6, 6]
    np.testing.assert_array_equal(found.parts[2].inputs[:, 1], pixels)


def bad_idx(path: Path, kind: str) -> None:
    content = path.read_bytes()
    match kind:
        case "short":
            path.write_bytes(content[:-1])
        case "long":
            path.write_bytes(content + b"x")
        case "floats":
            path.write_bytes(content[:2] + b"\x0d" + content[3:])
        case "many":
            path.write_bytes(content[:4] + b"\xff" * 4 + content[8:])
        case "empty":
            path.write_bytes(b"")
        case "damaged":
            packed = bytearray(gzip.compress(content))
            packed[-6] ^= 0xFF  # of the checksum
            path.write_bytes(packed)
        case "cut":
            path.write_bytes(gzip.compress(content)[:-20])
        case "gone":
            path.unlink()


@pytest.mark.parametrize("which", ["images", "labels"])
@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("short", "ends before what its header tells of"),
        ("long", "goes on after what its header tells of"),
        ("floats", r"expected the idx format with unsigned bytes.*00 00 0d"),
        ("many", "expected at most 100000000 images, got 4294967295"),
        ("empty", "first bytes are none"),
        ("damaged", "is damaged"),
        ("cut", "is damaged"),
        ("gone", "cannot be read: No such file or directory"),
    ],
)
def test_an_idx_file_that_is_no_good_is_named(
    tmp_path: Path, which: str, kind: str, expected: str
) -> None:
    images, labels, _, _ = pair(tmp_path)
    bad_idx(tmp_path / f"a-{which}", kind)
    with pytest.raises(DataError, match=expected) as caught:
        loaded(ImageDataset(source=IdxFiles(images=images, labels=labels)), tmp_path)
    assert f"file 'a-{which}'" in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


def test_idx_files_that_do_not_fit_each_other_are_told(tmp_path: Path) -> None:
    images, labels, _, _ = pair(tmp_path)
    idx(Path(labels), np.zeros(19, np.uint8))
    with pytest.raises(DataError, match="expected as many images in 'a-images' as labels"):
        loaded(ImageDataset(source=IdxFiles(images=images, labels=labels)), tmp_path)
    idx(Path(labels), np.full(20, 9, np.uint8))
    named = IdxFiles(images=images, labels=labels, class_names=("a", "b"))
    with pytest.raises(DataError, match=r"expected labels below 2.*got 9"):
        loaded(ImageDataset(source=named), tmp_path)


def test_an_idx_file_that_changes_meanwhile_fails_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels, _, _ = pair(tmp_path)

    def change(*arguments: Any) -> Any:
        pair(tmp_path)
        return resize(*arguments)

    monkeypatch.setattr(dataset_module, "resize", change)
    with pytest.raises(DataError, match=r"'a-images' was changed .*; clone the job|ends before"):
        loaded(ImageDataset(source=IdxFiles(images=images, labels=labels)), tmp_path)


def test_memory_does_not_grow_with_the_images(tmp_path: Path) -> None:
    def peak(images: int) -> int:
        labels = np.resize(np.arange(2, dtype=np.uint8), images)
        files = IdxFiles(
            images=idx(tmp_path / "images", np.zeros((images, 64, 64), np.uint8)),
            labels=idx(tmp_path / "labels", labels),
        )
        tracemalloc.start()
        try:
            found = loaded(ImageDataset(source=files), tmp_path)
            allocated = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        for part in found.parts:
            assert isinstance(part.inputs, np.memmap)
            assert part.inputs.dtype == np.uint8
        return allocated

    # An image has 4,096 bytes; its class number and part take 9, and ten more while it is divided.
    assert peak(2_200) - peak(200) < 2_000 * 400


# Resizing


@given(SIDES, SIDES, SIDES, SIDES)
@settings(max_examples=100, deadline=None)
def test_resizing_is_what_pillow_and_torch_call_bilinear_with_antialiasing(
    height: int, width: int, after_height: int, after_width: int
) -> None:
    image = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
    resized = resize(image, after_height, after_width).astype(int)
    size = (after_width, after_height)
    pillow = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
    # Both round after each side, and weights that differ in their last digits round apart by one.
    assert np.abs(resized - pillow).max() <= (height != after_height) + (width != after_width)
    if after_width == 1:
        return  # torch 2.13 then repeats the first row, whatever the others are
    by_torch = nn.functional.interpolate(
        torch.from_numpy(image.transpose(2, 0, 1)[None].astype(np.float32)),
        size=(after_height, after_width),
        mode="bilinear",
        antialias=True,
    )  # [1, 3, H, W]
    assert np.abs(resized - by_torch[0].numpy().transpose(1, 2, 0)).max() <= 1.5


@pytest.mark.parametrize("before", [1, 7, 500, 16_384])
def test_one_colour_stays_one_colour_and_sums_fit_into_32_bit_floats(before: int) -> None:
    for after in (1, 3, 28, 500):
        assert weights(before, after).sum(axis=1).max() * 255 < 2**24
    image = np.full((before, 2), 255, np.uint8)
    assert (resize(image, 28, 3) >= 253).all()
    assert resize(np.zeros((before, 2), np.uint8), 28, 3).max() == 0


# Scaling


def test_scaling_follows_the_training_images_of_each_channel() -> None:
    rows = noise(10, 3, 6, 5)
    histogram = PixelHistogram(3)
    for row in rows:
        histogram.add(row)
    module = fit_scaling(PixelScale.STANDARDIZED, histogram, 3)
    scaled = module(torch.from_numpy(rows))  # [10, 3, 6, 5]
    np.testing.assert_allclose(scaled.mean(dim=(0, 2, 3)), np.zeros(3), atol=1e-5)
    np.testing.assert_allclose(scaled.std(dim=(0, 2, 3), correction=0), np.ones(3), atol=1e-5)
    unit = fit_scaling(PixelScale.UNIT, histogram, 3)(torch.from_numpy(rows))
    np.testing.assert_allclose(unit, rows / 255, atol=1e-6)
    plain = fit_scaling(PixelScale.NONE, histogram, 3)(torch.from_numpy(rows))
    np.testing.assert_array_equal(plain, rows.astype(np.float32))


def test_a_channel_that_never_varies_is_only_centred() -> None:
    histogram = PixelHistogram(1)
    histogram.add(np.full((4, 4), 77, np.uint8))
    module = fit_scaling(PixelScale.STANDARDIZED, histogram, 2)
    assert module(torch.full((1, 4, 4), 77, dtype=torch.uint8)).abs().max() < 1e-6


def test_scaling_looks_at_training_images_alone(animals: Path, tmp_path: Path) -> None:
    root = tmp_path / "divided"
    for part in ("train", "validation", "test"):
        shutil.copytree(animals, root / part)
    first = loaded(of_folder(root, divided=True), tmp_path).scaling
    for part in ("validation", "test"):
        save(root / part / "cat" / "white.png", np.full((6, 5), 255, np.uint8))
    again = loaded(of_folder(root, divided=True), tmp_path).scaling
    assert torch.equal(first.mean, again.mean)
    assert torch.equal(first.stddev, again.stddev)


# The graph


class Exported:
    """A small network on images, exported alone."""

    def __init__(self, images: Images) -> None:
        torch.manual_seed(0)
        self.images = images
        train, validation, test = images.parts
        self.data = TrainingData(
            name="", sha256="", task=Task.CLASSIFICATION, input_name="pixels", input_meaning="",
            labels=images.labels, outputs=len(images.labels), train=train, validation=validation,
            test=test,
        )  # fmt: skip
        features = train.inputs[0].size
        network = nn.Sequential(images.scaling, nn.Flatten(), nn.Linear(features, 2))
        self.module = exported_module(network, Task.CLASSIFICATION)
        self.signature = signature_of(self.data)
        self.bare = export(self.module, self.signature, Task.CLASSIFICATION)

    def write(self, path: Path) -> Signature:
        whole = RawImages(self.images).export(self.bare, self.signature, self.module, path)
        return whole.signature


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 3)])
@pytest.mark.parametrize("size", [None, ImageSize(height=4, width=9)])
@pytest.mark.parametrize("scale", PixelScale)
def test_the_graph_passes_its_gate_in_every_colour_size_and_scale(
    tmp_path: Path, shape: tuple[int, ...], size: ImageSize | None, scale: PixelScale
) -> None:
    root = class_folders(tmp_path / "a", 4, *shape)
    if size is not None:
        save(root / "cat" / "large.png", noise(31, 17, *shape[2:]))
    images = loaded(of_folder(root, size=size, scale=scale), tmp_path)
    signature = Exported(images).write(tmp_path / "model.onnx")
    (image,) = signature.inputs
    middle = ("height", "width") if size else (6, 5)
    assert (image.name, image.datatype) == ("image", "UINT8")
    assert image.shape == ("batch", *middle, *shape[2:])
    assert [output.name for output in signature.outputs] == ["logits", "probabilities", "label"]
    assert leaks(onnx.load(tmp_path / "model.onnx")) == []


@pytest.mark.parametrize("size", [None, ImageSize(height=4, width=9)])
def test_a_network_for_one_row_gets_one_image_at_a_time(
    tmp_path: Path, size: ImageSize | None
) -> None:
    images = loaded(of_folder(class_folders(tmp_path / "a", 4, 6, 5, 3), size=size), tmp_path)
    exported = Exported(images)
    exported.signature = exported.signature.of_one_row()
    exported.bare = export(exported.module, exported.signature, Task.CLASSIFICATION)
    signature = exported.write(tmp_path / "model.onnx")
    assert {tensor.shape[0] for tensor in (*signature.inputs, *signature.outputs)} == {1}
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (label,) = session.run(["label"], {"image": noise(1, 6, 5, 3)})
    assert label.item() in images.labels


@pytest.fixture
def resizing(tmp_path: Path) -> tuple[Images, Exported, onnxruntime.InferenceSession]:
    """A graph that takes any size and answers the pixels that the network would get."""
    root = class_folders(tmp_path / "a", 4, 6, 5, 3)
    images = loaded(of_folder(root, size=ImageSize(height=7, width=11)), tmp_path)
    exported = Exported(images)
    exported.write(tmp_path / "model.onnx")
    model = onnx.load(tmp_path / "model.onnx")
    shape: list[str | int | None] = ["batch", 3, 7, 11]
    model.graph.output.append(
        onnx.helper.make_tensor_value_info("network.pixels", onnx.TensorProto.UINT8, shape)
    )
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return images, exported, session


def test_the_graph_resizes_to_the_very_pixels_that_training_saw(
    resizing: tuple[Images, Exported, onnxruntime.InferenceSession],
) -> None:
    images, _, session = resizing
    for _ in range(100):
        height, width = CHANCE.integers(1, 80, 2)
        batch = noise(2, height, width, 3)
        (pixels,) = session.run(["network.pixels"], {"image": batch})
        expected = np.stack([images.prepare(image) for image in batch])
        np.testing.assert_array_equal(pixels, expected)


def test_images_without_pixels_and_with_too_long_sides_do_not_hurt_the_server(
    resizing: tuple[Images, Exported, onnxruntime.InferenceSession],
) -> None:
    _, _, session = resizing
    (pixels,) = session.run(["network.pixels"], {"image": np.zeros((2, 0, 0, 3), np.uint8)})
    assert pixels.shape == (2, 3, 7, 11)
    session.run(None, {"image": np.zeros((1, decoding.MAX_RAW_SIDE, 1, 3), np.uint8)})
    with pytest.raises(Exception, match="indices element out of data bounds"):
        session.run(None, {"image": np.zeros((1, decoding.MAX_RAW_SIDE + 1, 1, 3), np.uint8)})


@pytest.mark.parametrize(
    ("operator", "change"),
    [
        ("Floor", {"op_type": "Ceil"}),
        ("Transpose", {"perm": [0, 3, 2, 1]}),
        ("ReduceSum", {"op_type": "ReduceMax"}),
    ],
)
def test_the_gate_finds_a_graph_that_prepares_images_in_another_way(
    tmp_path: Path, operator: str, change: dict[str, Any]
) -> None:
    size = ImageSize(height=7, width=7)
    images = loaded(of_folder(class_folders(tmp_path / "a", 4, 6, 5, 3), size=size), tmp_path)
    exported = Exported(images)
    signature = end_to_end_signature(exported.signature, images.color, 7, 7, any_size=True)
    model = end_to_end(exported.bare, signature, images.color, (7, 7))
    node = next(node for node in model.graph.node if node.op_type == operator)
    if "perm" in change:
        node.attribute[0].ints[:] = change["perm"]
    else:
        node.op_type = change["op_type"]
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(GateFailed, match=r"against Python|ONNX Runtime fails"):
        check_end_to_end(tmp_path / "model.onnx", exported.module, signature, images)


def test_the_first_of_each_class_comes_before_the_second_of_any(animals: Path) -> None:
    found = FolderSource(ImageFolder(path=str(animals))).images(np.ones(8, np.bool_))
    assert [image.name for image in found][:4] == [
        "cat/0.png",
        "dog/0.png",
        "cat/1.png",
        "dog/1.png",
    ]
