import numpy as np

from stepwell_server.demo import data


def test_no_test_image_is_trained_on():
    digits = data.load()
    assert (len(digits.training), len(digits.test)) == (1348, 449)
    training = {image.tobytes() for image in digits.training.pixels}
    assert not training & {image.tobytes() for image in digits.test.pixels}


def test_every_digit_is_there_in_both_parts():
    digits = data.load()
    for images in (digits.training, digits.test):
        assert images.pixels.shape == (len(images), data.PIXELS)
        assert images.pixels.dtype == np.float32
        assert images.pixels.min() == 0
        assert images.pixels.max() == 1
        assert set(images.labels) == set(range(data.CLASSES))


def test_the_split_is_always_the_same():
    assert np.array_equal(data.load().test.pixels, data.load().test.pixels)


def test_shards_hold_every_training_image_once():
    digits = data.load()
    shards = np.concatenate([digits.shard(index, 3).pixels for index in range(3)])
    assert sorted(map(bytes, shards)) == sorted(map(bytes, digits.training.pixels))
