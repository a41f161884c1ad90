"""Data sets: shapes, scales and splits as documented, and files that are cut, damaged or hostile refused."""

import os
import pickle
import warnings

import numpy as np
import pytest

import nfd_jax as nfd
from nfd_jax.datasets import cifar10, gaussian


def test_two_digits():
    task = nfd.datasets.digits(5)
    assert (task.samples, task.dimension, task.outputs, task.loss) == (5, 64, 1, "mse")
    np.testing.assert_array_equal(task.targets[:, 0], [-1, 1, -1, 1, -1])
    np.testing.assert_allclose((task.inputs**2).sum(axis=1), 64, rtol=1e-14)


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_several_digits_are_one_hot(loss):
    task = nfd.datasets.digits(6, classes=(7, 1, 4), loss=loss)
    np.testing.assert_array_equal(task.targets, np.eye(3)[[0, 1, 2, 0, 1, 2]])


def test_two_classes_of_cross_entropy_have_two_outputs():
    assert nfd.datasets.digits(4, loss="cross_entropy").outputs == 2


def test_images_are_those_of_scikit_learn():
    """A sample is a scaled image of its class, and no image comes twice."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    directions = bunch.data / np.linalg.norm(bunch.data, axis=1, keepdims=True)
    task = nfd.datasets.digits(20, classes=(3, 8))
    nearest = np.argmax(task.inputs @ directions.T, axis=1)
    np.testing.assert_allclose(task.inputs, 8 * directions[nearest], rtol=1e-13)
    np.testing.assert_array_equal(bunch.target[nearest], [3, 8] * 10)
    assert len(set(nearest.tolist())) == 20


def test_splits_are_disjoint_and_seeds_differ():
    rows = {
        (split, seed): {row.tobytes() for row in nfd.datasets.digits(100, split=split, seed=seed).inputs}
        for split in ("train", "test")
        for seed in (0, 1)
    }
    assert not rows["train", 0] & rows["test", 0]
    assert rows["train", 0] != rows["train", 1]
    again = nfd.datasets.digits(100, split="test", seed=1).inputs
    assert {row.tobytes() for row in again} == rows["test", 1]


def test_more_samples_begin_with_fewer():
    np.testing.assert_array_equal(nfd.datasets.digits(12).inputs[:6], nfd.datasets.digits(6).inputs)


# ------------------------------------------------------------------ CIFAR-10

TRAIN = [f"data_batch_{number}" for number in range(1, 6)]
EACH = 20  # images of every file: two of every class


@pytest.fixture(scope="module")
def batches():
    """Images and labels of every file."""
    rng = np.random.default_rng(0)
    return {
        name: (rng.integers(256, size=(EACH, 3072), dtype=np.uint8), rng.permutation(EACH) % 10)
        for name in [*TRAIN, "test_batch"]
    }


def binary(images, labels):
    return np.concatenate([labels[:, None].astype(np.uint8), images], axis=1).tobytes()


def contents(images, labels):
    return {
        b"batch_label": b"some of many",
        b"labels": labels.tolist(),
        b"data": images,
        b"filenames": [b"a.png"] * EACH,
    }


def by_python_2(images, labels):
    """What Python 2 writes with an old numpy: byte strings, numpy.core, and numbers for booleans of a dtype."""

    def string(content):
        return (
            b"U" + bytes([len(content)]) if len(content) < 256 else b"T" + len(content).to_bytes(4, "little")
        ) + content

    dtype = (
        b"cnumpy\ndtype\n" + string(b"u1") + b"K\x00K\x01\x87R(K\x03" + string(b"|") + b"NNN" + 2 * b"J\xff\xff\xff\xff"
    )
    shape = b"K" + bytes([len(images)]) + b"M" + (3072).to_bytes(2, "little") + b"\x86"
    return b"".join(
        [
            b"\x80\x02}(",
            string(b"batch_label") + string(b"some of many"),
            string(b"labels") + b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e",
            string(b"data")
            + b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85"
            + string(b"b")
            + b"\x87R",
            b"(K\x01" + shape + dtype + b"K\x00tb\x89" + string(images.tobytes()) + b"tb",
            b"u.",
        ]
    )


def by_numpy_1(images, labels):
    written = pickle.dumps(contents(images, labels), protocol=2)
    assert b"cnumpy._core.multiarray\n" in written
    return written.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def in_columns(images, labels):
    return pickle.dumps(contents(np.asfortranarray(images), labels), protocol=2)


def with_text_keys(images, labels):
    return pickle.dumps({"data": images, "labels": labels.tolist()}, protocol=2)


def by_protocol(protocol):
    return lambda images, labels: pickle.dumps(contents(images, labels), protocol=protocol)


WRITERS = {
    "python 2": by_python_2,
    "numpy 1": by_numpy_1,
    "columns": in_columns,
    "text keys": with_text_keys,
    **{f"protocol {protocol}": by_protocol(protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)},
}


def write(folder, batches, writer=None, *, meta=EACH):
    """The files of one version, the binary one without a writer."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (images, labels) in batches.items():
        (folder / (name if writer else f"{name}.bin")).write_bytes((writer or binary)(images, labels))
    if writer and meta is not None:
        stated = {b"num_cases_per_batch": meta, b"label_names": [b"airplane"], b"num_vis": 3072}
        (folder / "batches.meta").write_bytes(pickle.dumps(stated, protocol=2))
    return folder


def same(task, other):
    np.testing.assert_array_equal(task.inputs, other.inputs)
    np.testing.assert_array_equal(task.targets, other.targets)


@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize("split", ["train", "test"])
def test_all_versions_of_cifar_are_one_task(tmp_path, batches, writer, split):
    """The folder itself or the one above it; warnings of numpy about old files would be errors here."""
    options = {"samples": 6, "classes": (3, 8, 0), "split": split, "seed": 4}
    write(tmp_path / "a" / "cifar-10-batches-py", batches, writer)
    write(tmp_path / "b" / "cifar-10-batches-bin", batches)
    task = cifar10(tmp_path / "b", **options)
    same(task, cifar10(tmp_path / "b" / "cifar-10-batches-bin", **options))
    same(task, cifar10(tmp_path / "a", **options))
    same(task, cifar10(str(tmp_path / "a" / "cifar-10-batches-py"), **options))


def test_the_file_by_hand_is_a_pickle(batches):
    """Python itself reads the imitation of Python 2 as the images and labels that went in."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        batch = pickle.loads(by_python_2(*batches["test_batch"]), encoding="bytes")
    np.testing.assert_array_equal(batch[b"data"], batches["test_batch"][0])
    np.testing.assert_array_equal(batch[b"labels"], batches["test_batch"][1])


@pytest.mark.parametrize("split", ["train", "test"])
def test_cifar_samples_are_images_of_their_class_and_split(tmp_path, batches, split):
    files = TRAIN if split == "train" else ["test_batch"]
    images = np.concatenate([batches[name][0] for name in files])
    labels = np.concatenate([batches[name][1] for name in files])
    samples = 2 * 2 * len(files)  # every image of both classes
    raw = cifar10(write(tmp_path, batches), samples, (7, 2), split=split, normalise=False)
    row = {image.tobytes(): index for index, image in enumerate(images)}
    found = [row[image.astype(np.uint8).tobytes()] for image in raw.inputs]
    assert len(set(found)) == samples
    np.testing.assert_array_equal(labels[found], [7, 2] * (samples // 2))
    scaled = cifar10(tmp_path, samples, (7, 2), split=split)
    assert (scaled.dimension, scaled.outputs) == (3072, 1)
    np.testing.assert_array_equal(scaled.targets[:, 0], [-1, 1] * (samples // 2))
    lengths = np.linalg.norm(raw.inputs, axis=1, keepdims=True)
    np.testing.assert_allclose(scaled.inputs, raw.inputs * 3072**0.5 / lengths, rtol=1e-13)


def test_no_number_of_samples_takes_all_that_there_are():
    for classes, split in (((0, 1), "test"), ((3, 2), "test"), (tuple(range(10)), "train")):
        every = nfd.datasets.digits(None, classes, split=split)
        same(every, nfd.datasets.digits(every.samples, classes, split=split))
        with pytest.raises(ValueError, match="ask for fewer samples"):
            nfd.datasets.digits(every.samples + 1, classes, split=split)


def test_cifar_draws_as_digits_do(tmp_path, batches):
    folder = write(tmp_path, batches)
    same(cifar10(folder, 3), cifar10(folder, 3, seed=0))
    np.testing.assert_array_equal(cifar10(folder, 12).inputs[:6], cifar10(folder, 6).inputs)
    assert np.any(cifar10(folder, 6).inputs != cifar10(folder, 6, seed=1).inputs)
    np.testing.assert_array_equal(cifar10(folder, 4, (5, 0, 9)).targets, np.eye(3)[[0, 1, 2, 0]])
    task = cifar10(folder, 4, loss="cross_entropy")
    assert (task.loss, task.outputs) == ("cross_entropy", 2)
    task.holding_out(cifar10(folder, 2, loss="cross_entropy", split="test"))
    with pytest.raises(ValueError, match="samples=6 needs 3 test images of class 0, but there are 2; ask for fewer"):
        cifar10(folder, 6, split="test")
    with pytest.raises(ValueError, match=r"classes must be at least two distinct classes from 0 to 9, got \(1, 1\)"):
        cifar10(folder, classes=(1, 1))


def test_only_files_of_the_split_are_read(tmp_path, batches):
    write(tmp_path, batches, by_python_2)
    (tmp_path / "test_batch").unlink()
    cifar10(tmp_path, 4)
    with pytest.raises(
        ValueError, match="has no file of the test split of CIFAR-10; give the folder that holds test_b"
    ):
        cifar10(tmp_path, 4, split="test")
    write(tmp_path, batches, by_python_2)
    for name in TRAIN:
        (tmp_path / name).write_bytes(b"damaged")
    cifar10(tmp_path, 4, split="test")


def test_a_complete_version_is_taken_before_a_partial_one(tmp_path, batches):
    write(tmp_path, {"data_batch_2": batches["data_batch_2"]}, by_python_2)
    write(tmp_path, batches)
    same(cifar10(tmp_path, 4), cifar10(write(tmp_path / "other", batches), 4))


def test_missing_files(tmp_path, batches):
    with pytest.raises(ValueError, match="nowhere' doesn't exist; give the folder"):
        cifar10(tmp_path / "nowhere")
    with pytest.raises(
        ValueError, match=r"data_batch_1 to data_batch_5, with or without \.bin, or the one above cifar-10"
    ):
        cifar10(tmp_path)
    for writer, suffix in ((None, ".bin"), (by_python_2, "")):
        folder = write(tmp_path / f"version{suffix}", batches, writer)
        (folder / f"data_batch_3{suffix}").unlink()
        with pytest.raises(ValueError, match=f"data_batch_3{suffix}' is missing, while .* extract it again"):
            cifar10(folder)
    archive = tmp_path / "cifar-10-python.tar.gz"
    archive.write_bytes(b"")
    with pytest.raises(ValueError, match="gz' is a file; extract archives first"):
        cifar10(archive)


def test_an_unreadable_file(tmp_path, batches, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    write(tmp_path, batches)
    monkeypatch.setattr("pathlib.Path.read_bytes", refuse)
    with pytest.raises(ValueError, match=r"data_batch_1\.bin' can't be read \(Permission denied\); extract"):
        cifar10(tmp_path)


@pytest.mark.parametrize("size", [0, 1, 3072, 3074, EACH * 3073 - 1])
def test_a_binary_file_with_part_of_a_record(tmp_path, batches, size):
    content = binary(*batches["data_batch_4"])
    (write(tmp_path, batches) / "data_batch_4.bin").write_bytes(content[:size])
    with pytest.raises(
        ValueError, match=f"data_batch_4.bin' has {size} bytes, which is no positive multiple of the 3073"
    ):
        cifar10(tmp_path, 4)


@pytest.mark.parametrize("writer", [by_python_2, by_protocol(2), by_protocol(5)])
def test_a_pickle_cut_anywhere(tmp_path, batches, writer):
    """No shorter file is read; short cuts one by one, those among the pixels by steps."""
    write(tmp_path, batches, writer)
    path = tmp_path / "test_batch"
    content = path.read_bytes()
    for size in {*range(0, 600, 7), *range(600, len(content), 5003), *range(len(content) - 60, len(content))}:
        path.write_bytes(content[:size])
        with pytest.raises(
            ValueError, match=r"test_batch' is no file of CIFAR-10, or is damaged or cut .*extract it again"
        ):
            cifar10(tmp_path, 4, split="test")
    path.write_bytes(content)
    cifar10(tmp_path, 4, split="test")


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_binary_file_cut_between_records(tmp_path, batches, split):
    """The other files tell, also the one of the other split."""
    name = "data_batch_5" if split == "train" else "test_batch"
    (write(tmp_path, batches) / f"{name}.bin").write_bytes(binary(*batches[name])[: 18 * 3073])
    with pytest.raises(ValueError, match=f"{name}.bin' has 18 images, while another file has 20; extract"):
        cifar10(tmp_path, 4, split=split)


def test_a_pickle_with_fewer_images_than_others(tmp_path, batches):
    images, labels = batches["data_batch_2"]
    write(tmp_path, batches, by_protocol(2), meta=None)
    cifar10(tmp_path, 4)
    (tmp_path / "data_batch_2").write_bytes(by_python_2(images[:9], labels[:9]))
    with pytest.raises(ValueError, match="data_batch_2' has 9 images, while another file has 20"):
        cifar10(tmp_path, 4)


def test_counts_are_those_of_the_meta_file(tmp_path, batches):
    write(tmp_path, batches, by_protocol(2), meta=10_000)
    for split, name in (("train", "data_batch_1"), ("test", "test_batch")):
        with pytest.raises(ValueError, match=f"{name}' has 20 images, while batches.meta states 10000; extract"):
            cifar10(tmp_path, 4, split=split)
    (tmp_path / "batches.meta").write_bytes(pickle.dumps({b"label_names": []}, protocol=2))
    cifar10(tmp_path, 4)
    (tmp_path / "batches.meta").write_bytes(b"\x80\x02}q")
    with pytest.raises(ValueError, match=r"batches\.meta' is no file of CIFAR-10"):
        cifar10(tmp_path, 4)


DAMAGED = [
    ([1, 2], "must hold a dictionary, got list"),
    ({b"fine_labels": [1]}, "must hold 'data' and 'labels', got 'fine_labels'"),
    ({b"data": [[1]], b"labels": [1]}, "must hold an array 'data', got list"),
    ({b"data": np.ones((2, 3072)), b"labels": [1, 2]}, r"type 'u1', got shape \(2, 3072\) and type 'f8'"),
    ({b"data": np.ones((2, 3072), np.int8), b"labels": [1, 2]}, "and type 'i1'"),
    ({b"data": np.ones((2, 3071), np.uint8), b"labels": [1, 2]}, r"shape \(N, 3072\) .* got shape \(2, 3071\)"),
    ({b"data": np.ones((3, 32, 32), np.uint8), b"labels": [1]}, r"got shape \(3, 32, 32\)"),
    ({b"data": np.ones((0, 3072), np.uint8), b"labels": []}, r"got shape \(0, 3072\)|asks for __builtin__\.bytes"),
    ({b"data": np.ones((2, 3072), np.uint8), b"labels": [1]}, "a list of 2 labels, one an image, got 1 labels"),
    ({b"data": np.ones((2, 3072), np.uint8), b"labels": b"ab"}, "a list of 2 labels, one an image, got bytes"),
    ({b"data": np.ones((2, 3072), np.uint8), b"labels": [1, 10]}, "labels from 0 to 9, got 10 at image 1"),
    ({b"data": np.ones((2, 3072), np.uint8), b"labels": [-1, 2]}, "labels from 0 to 9, got -1 at image 0"),
    ({b"data": np.ones((2, 3072), np.uint8), b"labels": [1, None]}, "labels from 0 to 9, got None at image 1"),
]


@pytest.mark.parametrize("protocol", [2, 5])
@pytest.mark.parametrize(("content", "message"), DAMAGED)
def test_a_pickle_of_something_else(tmp_path, content, message, protocol):
    (tmp_path / "test_batch").write_bytes(pickle.dumps(content, protocol=protocol))
    with pytest.raises(ValueError, match=f"test_batch' .*({message}).*extract it again"):
        cifar10(tmp_path, 4, split="test")


def test_labels_of_a_damaged_binary_file(tmp_path, batches):
    images, labels = batches["test_batch"]
    (tmp_path / "test_batch.bin").write_bytes(binary(images, np.where(np.arange(EACH) == 7, 77, labels)))
    with pytest.raises(ValueError, match="labels from 0 to 9, got 77 at image 7"):
        cifar10(tmp_path, 4, split="test")


class Shell:
    """Runs a command when it is unpickled."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", ["test_batch", "batches.meta"])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path, batches, name, protocol):
    write(tmp_path, batches, by_protocol(2))
    trace = tmp_path / "trace"
    hostile = pickle.dumps({b"data": Shell(f"echo > {trace}"), b"labels": [1]}, protocol=protocol)
    (tmp_path / name).write_bytes(hostile)
    with pytest.raises(
        ValueError, match=rf"{name}' .*it asks for {os.system.__module__}\.system, which no file of CIFAR"
    ):
        cifar10(tmp_path, 4, split="test")
    assert not trace.exists()
    pickle.loads(hostile)
    assert trace.exists()  # so the file would have done it


@pytest.mark.parametrize(
    "name", ["numpy\nload", "builtins\neval", "__builtin__\neval", "numpy.core.multiarray\nscalar"]
)
def test_other_names_are_refused(tmp_path, name):
    (tmp_path / "test_batch").write_bytes(b"\x80\x02c" + name.encode() + b"\n.")
    with pytest.raises(ValueError, match=f"it asks for {name.replace(chr(10), '.')}, which"):
        cifar10(tmp_path, 4, split="test")


# ------------------------------------------------------------------ Gaussian inputs with a teacher

DEVIATIONS = 5.0  # of a mean of thousands of terms; a normal one is as far once in 1.7 million seeds


def identity(z):
    return z


def directions(task):
    """Of the teacher `identity`, from its inputs and targets, which are linear in them: `(d, k)`."""
    return np.linalg.lstsq(task.inputs, task.targets)[0]


def test_gaussian_teacher():
    task = gaussian(50, 7)
    assert (task.samples, task.dimension, task.outputs) == (50, 7, 1)
    np.testing.assert_allclose((task.inputs**2).sum(axis=1), 7, rtol=1e-13)
    assert set(task.targets.ravel().tolist()) == {-1.0, 1.0}
    assert np.any(gaussian(50, 7, seed=1).inputs != task.inputs)


def test_more_samples_of_one_teacher():
    """And have the same teacher, so that learning curves over P are of one problem."""
    options = {"teacher": "relu", "indices": 2, "noise": 0.3, "seed": 5}
    few, many = gaussian(10, 6, **options), gaussian(25, 6, **options)
    np.testing.assert_array_equal(many.inputs[:10], few.inputs)
    np.testing.assert_allclose(many.targets[:10], few.targets, rtol=0, atol=1e-14)


@pytest.mark.parametrize(("dimension", "indices"), [(9, 1), (9, 4), (5, 5), (1, 1)])
def test_directions_are_orthonormal_and_those_of_both_splits(dimension, indices):
    train = gaussian(40, dimension, teacher=identity, indices=indices, seed=3)
    test = gaussian(17, dimension, teacher=identity, indices=indices, split="test", seed=3)
    assert (test.samples, test.outputs) == (17, indices)
    found = directions(train)
    np.testing.assert_allclose(found.T @ found, np.eye(indices), rtol=0, atol=1e-13)
    np.testing.assert_allclose(directions(test), found, rtol=0, atol=1e-13)
    one = directions(gaussian(40, dimension, teacher=identity, seed=3))
    np.testing.assert_allclose(one, found[:, :1], rtol=0, atol=1e-13)
    if dimension > 1:
        other = directions(gaussian(40, dimension, teacher=identity, indices=indices, seed=4))
        assert np.max(np.abs(other - found)) > 1e-3


LINKS = {
    "sign": lambda z: sum(np.sign(z)) / len(z) ** 0.5,
    "linear": lambda z: sum(z) / len(z) ** 0.5,
    "relu": lambda z: sum(np.where(z > 0, z, 0)) / len(z) ** 0.5,
    "hermite2": lambda z: sum(np.polynomial.hermite_e.hermeval(z, [0, 0, 1])) / (2 * len(z)) ** 0.5,
    "hermite3": lambda z: sum(np.polynomial.hermite_e.hermeval(z, [0, 0, 0, 1])) / (6 * len(z)) ** 0.5,
    "product": lambda z: z[0] if len(z) == 1 else z[0] * z[1] * z[2],
    "parity": lambda z: np.sign(z[0] if len(z) == 1 else z[0] * z[1] * z[2]),
    "staircase": lambda z: z[0] if len(z) == 1 else z[0] + z[0] * z[1] + z[0] * z[1] * z[2],
}


@pytest.mark.parametrize("split", [{}, {"split": "test"}], ids=["train", "test"])
@pytest.mark.parametrize("indices", [1, 3])
@pytest.mark.parametrize("teacher", LINKS)
def test_links(teacher, indices, split):
    """Every teacher of a seed has the same inputs and indices."""
    z = gaussian(20, 6, teacher=identity, indices=indices, **split)
    task = gaussian(20, 6, teacher=teacher, indices=indices, **split)
    np.testing.assert_array_equal(task.inputs, z.inputs)
    assert task.targets.shape == (20, 1)
    np.testing.assert_allclose(task.targets[:, 0], LINKS[teacher](z.targets.T), rtol=1e-12, atol=1e-13)


def test_indices_have_the_moments_of_a_sphere():
    """Mean zero, covariance one, fourth moment 3 d / (d + 2): not 3, and other by many standard errors."""
    samples, dimension = 40_000, 6
    z = gaussian(samples, dimension, teacher=identity, indices=3).targets
    # the variances of z_i, of z_i z_j and of z_i^2 are at most 2, and that of z^4 at most E z^8 = 105 of the normal law
    bound = DEVIATIONS * (2 / samples) ** 0.5
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=bound)
    np.testing.assert_allclose(z.T @ z / samples, np.eye(3), rtol=0, atol=bound)
    fourth = DEVIATIONS * (105 / samples) ** 0.5
    np.testing.assert_allclose((z**4).mean(axis=0), 3 * dimension / (dimension + 2), rtol=0, atol=fourth)
    assert 3 - 3 * dimension / (dimension + 2) > 2 * fourth


def test_splits_and_noise_are_independent():
    """Products of independent numbers of variance one have mean zero and variance one; of equal ones, mean one."""
    samples, dimension, deviation = 5_000, 8, 0.5
    options = {"teacher": "linear", "indices": 2}
    held = options | {"split": "test"}
    train, test = gaussian(samples, dimension, **options), gaussian(samples, dimension, **held)
    noisy_train = gaussian(samples, dimension, noise=deviation, **options)
    noisy_test = gaussian(samples, dimension, noise=deviation, **held)
    np.testing.assert_array_equal(noisy_train.inputs, train.inputs)
    np.testing.assert_array_equal(noisy_test.inputs, test.inputs)
    noise = [(noisy.targets - clean.targets).ravel() for noisy, clean in ((noisy_train, train), (noisy_test, test))]
    for part in noise:
        assert np.mean(part**2) / deviation**2 == pytest.approx(1, abs=DEVIATIONS * (2 / samples) ** 0.5)
    streams = [train.inputs.ravel(), test.inputs.ravel(), *(part / deviation for part in noise)]
    for i, one in enumerate(streams):
        for other in streams[:i]:
            count = min(len(one), len(other))
            assert abs(np.mean(one[:count] * other[:count])) < DEVIATIONS / count**0.5


def test_a_teacher_of_several_outputs():
    task = gaussian(10, 4, teacher=lambda z: np.stack([z[:, 0], z[:, 1] ** 2, np.ones(10)], axis=1), indices=2)
    assert task.outputs == 3
    np.testing.assert_array_equal(task.targets[:, 2], 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teacher": "cosine"}, "unknown teacher 'cosine'; choose one of 'sign', .*'staircase'"),
        ({"indices": 0}, "indices must be at least 1, got 0"),
        ({"indices": 5}, "indices=5 orthonormal directions don't fit dimension=4"),
        ({"noise": -0.1}, "noise must be a finite number at least 0, got -0.1"),
        ({"split": "validation"}, "unknown split 'validation'"),
        ({"teacher": lambda z: z[:3, 0]}, r"teacher must give one target a sample, 8, got shape \(3,\)"),
        ({"teacher": lambda z: z[:, 0] / 0.0}, "targets of teacher must be finite"),
        ({"teacher": lambda z: 1.0}, "targets of teacher must be a non-empty array with 1 or 2 axes"),
    ],
)
def test_bad_teachers(options, message):
    with np.errstate(divide="ignore"), pytest.raises(ValueError, match=message):
        gaussian(8, 4, **options)
