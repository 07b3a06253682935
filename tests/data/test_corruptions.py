"""Corruptions against the image libraries that the original calls, or against plain loops."""

import colorsys
import io
import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.nn import functional as F

from heterodox.data import corruption_blurs as blurs
from heterodox.data import corruption_colours as colours
from heterodox.data import corruption_noise as noise
from heterodox.data import corruption_warps as warps
from heterodox.data import corruption_weather as weather
from heterodox.data.corruption_jpeg import jpeg
from heterodox.data.corruptions import CORRUPTIONS, TUNING_CORRUPTIONS, corrupt

KINDS = (*CORRUPTIONS, *TUNING_CORRUPTIONS)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def pictures(count=3, channels=3, height=32, width=32, dtype=torch.float64):
    """Smooth shapes with some texture, as photographs have."""
    generator = seeded(5)
    coarse = torch.rand(count, channels, 5, 5, generator=generator, dtype=torch.float64)
    smooth = F.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)
    texture = torch.randn(smooth.shape, generator=generator, dtype=torch.float64)
    return (smooth + 0.05 * texture).clamp(0, 1).to(dtype)


def test_the_other_kinds_do_worse_in_the_end_than_at_first():
    x = pictures(40)
    for kind in ("glass_blur", "frost", "pixelate"):
        first, last = (
            (corrupt(x, kind, severity, generator=seeded()) - x).square().mean()
            for severity in (1, 5)
        )
        assert last > first


def test_there_are_fifteen_kinds_and_four_more():
    assert len(set(KINDS)) == 19 and len(CORRUPTIONS) == 15
    assert set(TUNING_CORRUPTIONS) == {"speckle_noise", "gaussian_blur", "spatter", "saturate"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("channels", "height", "width"), [(3, 32, 32), (1, 28, 28), (1, 8, 8), (3, 9, 40)]
)
def test_shape_range_and_dtype_are_kept_and_the_seed_decides(kind, channels, height, width):
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        x = pictures(2, channels, height, width, dtype)
        before = x.clone()
        for severity in range(1, 6):
            y = corrupt(x, kind, severity, generator=seeded())
            assert y.shape == x.shape and y.dtype == dtype
            assert y.min() >= 0 and y.max() <= 1
            assert torch.equal(y, corrupt(x, kind, severity, generator=seeded()))
        assert torch.equal(x, before)


# By the constants of CIFAR-10-C, elastic shifts less and less by its affine part, glass ends with
# more smoothing at severity 3 than at 2, frost keeps less of the image, and pixelation depends on
# where its grid falls; spatter changes from water to mud, saturate from less to more.
FALLING = ("elastic_transform", "glass_blur", "frost", "pixelate")


@pytest.mark.parametrize(
    "kind", [*(k for k in CORRUPTIONS if k not in FALLING), "speckle_noise", "gaussian_blur"]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_higher_severity_is_farther_from_the_image(kind, channels):
    x = pictures(40, channels)
    errors = [
        (corrupt(x, kind, severity, generator=seeded()) - x).square().mean().item()
        for severity in range(1, 6)
    ]
    assert errors == sorted(errors) and errors[0] > 0


RANDOM = ("noise", "glass", "motion", "snow", "frost", "fog", "elastic", "spatter")


@pytest.mark.parametrize("kind", KINDS)
def test_every_image_has_random_numbers_of_its_own(kind):
    x = pictures(1).repeat(2, 1, 1, 1)
    first, second = corrupt(x, kind, 5, generator=seeded())
    other = corrupt(x, kind, 5, generator=seeded(1))[0]
    random = any(word in kind for word in RANDOM)
    assert torch.equal(first, second) != random
    assert torch.equal(first, other) != random


@pytest.mark.parametrize("kind", [k for k in KINDS if "noise" not in k and "saturate" not in k])
@pytest.mark.parametrize("severity", [1, 5])
def test_grey_images_are_treated_like_colour_images_without_colour(kind, severity):
    x = 0.4 * pictures(2, 1)  # dark enough for water not to be cut at 1
    y = corrupt(x, kind, severity, generator=seeded())
    colour = corrupt(x.repeat(1, 3, 1, 1), kind, severity, generator=seeded())
    if kind == "spatter":
        colour = weather.grey(colour)
    tolerance = 0.008 if kind == "jpeg_compression" else 1e-6  # luminance is rounded to 8 bits
    torch.testing.assert_close(colour, y.expand_as(colour), rtol=0, atol=tolerance)


def test_noise_has_the_moments_of_its_definition():
    x = torch.full((1, 1, 400, 400), 0.4, dtype=torch.float64)
    y = noise.gaussian_noise(x, seeded(), 0.1)
    assert y.mean().item() == pytest.approx(0.4, abs=1e-3)
    assert y.std().item() == pytest.approx(0.1, rel=0.01)
    y = noise.shot_noise(x, seeded(), 50.0)
    assert y.mean().item() == pytest.approx(0.4, abs=1e-3)
    assert y.var().item() == pytest.approx(0.4 / 50, rel=0.02)
    torch.testing.assert_close(50 * y, (50 * y).round())
    y = noise.speckle_noise(x, seeded(), 0.2)
    assert y.std().item() == pytest.approx(0.4 * 0.2, rel=0.01)
    y = noise.impulse_noise(x, seeded(), 0.07)
    assert (y == 0).double().mean().item() == pytest.approx(0.035, abs=2e-3)
    assert (y == 1).double().mean().item() == pytest.approx(0.035, abs=2e-3)
    assert ((y == 0.4) | (y == 0) | (y == 1)).all()


@pytest.mark.parametrize(("edge", "mode"), [("replicate", "nearest"), ("symmetric", "reflect")])
@pytest.mark.parametrize("deviation", [0.05, 0.4, 1.0, 4.0])
@pytest.mark.parametrize("truncate", [3.0, 4.0])
def test_smoothing_is_scipy_s(edge, mode, deviation, truncate):
    x = pictures(1, 1, 9, 12)
    expected = ndimage.gaussian_filter(x[0, 0].numpy(), deviation, mode=mode, truncate=truncate)
    smooth = blurs.smooth(x, deviation, truncate, edge)
    torch.testing.assert_close(smooth[0, 0], torch.from_numpy(expected))


def test_smoothing_by_nothing_is_nothing():
    x = pictures(1, 1, 9, 12)
    assert torch.equal(blurs.smooth(x, 0.0), x)


@pytest.mark.parametrize(("radius", "alias"), [(0.3, 0.4), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1)])
def test_defocus_is_a_mean_over_a_softened_disk(radius, alias):
    places = np.arange(-8, 9)
    sharp = (places[:, None] ** 2 + places**2 <= radius**2).astype(float)
    taps = np.exp(-0.5 * (np.array([-1, 0, 1]) / alias) ** 2)
    taps /= taps.sum()
    kernel = ndimage.correlate(sharp / sharp.sum(), np.outer(taps, taps), mode="constant")
    x = pictures(2, 3, 11, 12)
    blurred = blurs.defocus_blur(x, seeded(), radius, alias)
    for image, result in zip(x.flatten(0, 1), blurred.flatten(0, 1), strict=True):
        expected = ndimage.correlate(image.numpy(), kernel, mode="mirror")
        torch.testing.assert_close(result, torch.from_numpy(expected))


def test_glass_exchanges_neighbours_from_the_last_pixel_to_the_first():
    batch, height, width, reach, rounds = 3, 9, 10, 2, 2
    x = pictures(batch, 3, height, width)
    blurred = blurs.glass_blur(x, seeded(), 0.01, reach, rounds)
    turns = rounds * (height - reach) * (width - reach)
    shifts = torch.rand(turns, 2, batch, generator=seeded()).mul(2 * reach).long() - reach
    expected, turn = x.clone(), 0
    for _ in range(rounds):
        for i in range(height - reach, reach, -1):
            for j in range(width - reach, reach, -1):
                for b in range(batch):
                    u, v = i + int(shifts[turn, 0, b]), j + int(shifts[turn, 1, b])
                    here = expected[b, :, i, j].clone()
                    expected[b, :, i, j] = expected[b, :, u, v]
                    expected[b, :, u, v] = here
                turn += 1
    torch.testing.assert_close(blurred, expected)
    assert shifts.min() == -reach and shifts.max() == reach - 1


@pytest.mark.parametrize(("angle", "down", "right"), [(0.0, 0, 1), (90.0, 1, 0), (-90.0, -1, 0)])
def test_motion_is_a_half_gaussian_trail(angle, down, right):
    x = pictures(1, 1, 9, 10)
    blurred = blurs.motion_blur(x, seeded(), 6.0, 2.0, angle, angle)
    taps = [math.exp(-0.5 * (k / 2) ** 2) for k in range(13)]
    for i, j in ((0, 0), (4, 5), (8, 9), (2, 7)):
        trail = [
            x[0, 0, min(max(i + k * down, 0), 8), min(max(j + k * right, 0), 9)].item()
            for k in range(13)
        ]
        expected = np.dot(taps, trail) / sum(taps)
        assert blurred[0, 0, i, j].item() == pytest.approx(expected)


def test_motion_in_a_diagonal_keeps_a_diagonal_line():
    line = torch.eye(15, dtype=torch.float64)[None, None]
    blurred = blurs.motion_blur(line, seeded(), 3.0, 1.0, 45.0, 45.0)[0, 0]
    assert blurred.diagonal().min() > 0.7
    assert blurred[0, 10] == 0


@pytest.mark.parametrize("zoom", [1.0, 1.05, 1.25, 2.25])
def test_enlargement_is_scipy_s_zoom_of_the_middle(zoom):
    x = pictures(1, 1, 32, 32)
    side = math.ceil(32 / zoom)
    first = (32 - side) // 2
    middle = x[0, 0, first : first + side, first : first + side].numpy()
    large = ndimage.zoom(middle, zoom, order=1)
    first = (len(large) - 32) // 2
    expected = torch.from_numpy(large[first : first + 32, first : first + 32])
    torch.testing.assert_close(blurs.enlarge(x, zoom)[0, 0], expected)


def test_zoom_blur_is_a_mean_over_zooms():
    x = pictures(1, 1)
    for severity, below in enumerate((1.06, 1.11, 1.16, 1.21, 1.26), start=1):
        zooms = np.arange(1, below, 0.01)
        expected = (x + sum(blurs.enlarge(x, zoom) for zoom in zooms)) / (1 + len(zooms))
        blurred = corrupt(x, "zoom_blur", severity, generator=seeded())
        torch.testing.assert_close(blurred, expected.clamp(0, 1))


def test_plasma_is_the_diamond_square_algorithm():
    size, decay, generator = 4, 3.0, seeded()
    clouds, wibble, step = np.zeros((size, size)), 100.0, size
    while step >= 2:
        half = step // 2

        def fill(places, parts, wibble=wibble, clouds=clouds):
            count = int(math.sqrt(len(places)))
            draws = torch.rand(1, count, count, generator=generator).flatten().tolist()
            for (i, j), neighbours, draw in zip(places, parts, draws, strict=True):
                total = sum(clouds[u % size, v % size] for u, v in neighbours)
                clouds[i, j] = total / 4 + wibble**2 * (2 * draw - 1)

        grid = range(0, size, step)
        places = [(i + half, j + half) for i in grid for j in grid]
        corners = [
            [(i + a, j + b) for a in (0, step) for b in (0, step)] for i in grid for j in grid
        ]
        fill(places, corners)

        def around(i, j, half=half):
            return [(i - half, j), (i + half, j), (i, j - half), (i, j + half)]

        for down, right in ((0, half), (half, 0)):
            places = [(i + down, j + right) for i in grid for j in grid]
            fill(places, [around(i, j) for i, j in places])
        step, wibble = half, wibble / decay
    expected = (clouds - clouds.min()) / (clouds.max() - clouds.min())
    like = torch.zeros(1, dtype=torch.float64)
    result = weather.plasma(1, size, size, seeded(), decay, like)[0, 0]
    torch.testing.assert_close(result, torch.from_numpy(expected))


def test_fog_adds_clouds_and_keeps_the_largest_value_s_scale():
    x = pictures(2)
    clouds = weather.plasma(2, 32, 32, seeded(), 1.75, x)
    y = weather.fog(x, seeded(), 1.5, 1.75)
    for image, cloud, result in zip(x, clouds, y, strict=True):
        largest = image.max()
        torch.testing.assert_close(result, (image + 1.5 * cloud) * largest / (largest + 1.5))


def hsv(pixels, change):
    """Python's own conversion, pixel by pixel."""
    result = []
    for red, green, blue in pixels.tolist():
        h, s, v = colorsys.rgb_to_hsv(red, green, blue)
        result.append(colorsys.hsv_to_rgb(h, *change(s, v)))
    return torch.tensor(result, dtype=torch.float64)


def special_pixels():
    pixels = torch.rand(60, 3, generator=seeded(), dtype=torch.float64)
    special = [[0, 0, 0], [1, 1, 1], [0.3, 0.3, 0.3], [1, 0, 0], [0, 0.2, 0.2], [0.9, 0.95, 0.1]]
    return torch.cat([pixels, torch.tensor(special, dtype=torch.float64)])


def as_image(pixels):
    return pixels.T.reshape(1, 3, 1, -1)


@pytest.mark.parametrize("more", [0.05, 0.3])
def test_brightness_raises_the_value(more):
    pixels = special_pixels()
    expected = hsv(pixels, lambda s, v: (s, min(v + more, 1)))
    y = colours.brightness(as_image(pixels), seeded(), more)
    torch.testing.assert_close(y, as_image(expected))


@pytest.mark.parametrize(("factor", "more"), [(0.3, 0.0), (1.5, 0.0), (2.0, 0.1), (2.5, 0.2)])
def test_saturate_changes_the_saturation(factor, more):
    pixels = special_pixels()
    expected = hsv(pixels, lambda s, v: (min(s * factor + more, 1), v))
    y = colours.saturate(as_image(pixels), seeded(), factor, more)
    torch.testing.assert_close(y, as_image(expected))
    grey = pictures(1, 1)
    assert torch.equal(colours.saturate(grey, seeded(), factor, more), grey)


def test_contrast_shrinks_differences_from_the_mean():
    x = pictures(2)
    y = colours.contrast(x, seeded(), 0.15)
    torch.testing.assert_close(y.mean((2, 3)), x.mean((2, 3)))
    torch.testing.assert_close(y.std((2, 3)), 0.15 * x.std((2, 3)))


@pytest.mark.parametrize("factor", [0.95, 0.9, 0.85, 0.75, 0.65])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (28, 28), (8, 16)])
def test_pixelation_is_pillow_s_box_filter(factor, height, width):
    image_module = pytest.importorskip("PIL.Image")
    x = pictures(1, 1, height, width).float()
    image = image_module.fromarray(x[0, 0].numpy(), mode="F")
    small = image.resize((int(width * factor), int(height * factor)), image_module.Resampling.BOX)
    expected = np.asarray(small.resize((width, height), image_module.Resampling.BOX))
    y = warps.pixelate(x, seeded(), factor)[0, 0]
    torch.testing.assert_close(y, torch.from_numpy(expected.copy()))


@pytest.mark.parametrize("quality", [80, 50, 40, 15])
@pytest.mark.parametrize(("height", "width"), [(96, 96), (92, 92), (89, 102)])
@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_what_libjpeg_reads_back(quality, height, width, channels):
    image_module = pytest.importorskip("PIL.Image")
    x = (pictures(1, channels, height, width) * 255).round() / 255
    pixels = (x[0].movedim(0, -1) * 255).round().byte().numpy()
    file = io.BytesIO()
    image_module.fromarray(pixels.squeeze()).save(file, "JPEG", quality=quality)
    expected = torch.from_numpy(np.asarray(image_module.open(file)).reshape(pixels.shape).copy())
    y = 255 * jpeg(x, seeded(), quality)[0].movedim(0, -1).clamp(0, 1)
    difference = (y - expected).abs()
    loss = (torch.from_numpy(pixels) - expected.double()).abs().mean().item()
    # libjpeg computes with integers: a coefficient half-way between two multiples falls either way.
    assert difference.median() < 1
    assert difference.mean() < 0.2 * loss


@pytest.mark.parametrize(("repeat_edge", "mode"), [(True, "reflect"), (False, "mirror")])
def test_sampling_is_scipy_s(repeat_edge, mode):
    x = pictures(1, 1, 9, 12)
    rows = 20 * torch.rand(1, 30, 1, generator=seeded(), dtype=torch.float64) - 6
    columns = 24 * torch.rand(1, 30, 1, generator=seeded(1), dtype=torch.float64) - 6
    places = np.stack([rows.flatten().numpy(), columns.flatten().numpy()])
    expected = ndimage.map_coordinates(x[0, 0].numpy(), places, order=1, mode=mode)
    y = warps.sample(x, rows, columns, repeat_edge=repeat_edge)
    torch.testing.assert_close(y.flatten(), torch.from_numpy(expected))


def test_the_affine_part_moves_three_points():
    side, share = 32, 0.03
    rows, columns = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    ramps = (torch.stack([rows, columns])[:, None] / 31).double().repeat_interleave(1, 0)
    moved = warps.elastic_transform(ramps, seeded(), 0.0, 0.0, share)
    draws = 2 * torch.rand(2, 3, 2, generator=seeded()).double() - 1
    points = torch.tensor([[26, 26], [26, 6], [6, 6]]).double()  # (column, row)
    for ramp, axis in ((0, 1), (1, 0)):
        targets = points + share * side * draws[ramp]
        values = warps.sample(
            moved[ramp : ramp + 1], targets[None, :, 1:], targets[None, :, :1], repeat_edge=True
        )
        torch.testing.assert_close(31 * values.flatten(), points[:, axis])


def test_displacements_are_smooth_and_of_the_stated_size():
    columns = torch.arange(64.0).double().expand(20, 1, 64, 64) / 63
    shifted = warps.elastic_transform(columns, seeded(), 0.1, 0.04, 0.0)
    moved = 63 * (shifted - columns)[:, :, 10:-10, 10:-10]
    deviation = 0.04 * 64
    # Uniform noise has the variance 1/3, and smoothing divides it by 4 π σ².
    expected = 0.1 * 64 * math.sqrt(1 / 3 / (4 * math.pi * deviation**2))
    assert moved.std().item() == pytest.approx(expected, rel=0.05)


def test_snow_and_frost_brighten_and_mud_darkens():
    x = 0.5 * pictures(5)
    assert (weather.frost(x, seeded(), 1.0, 0.2) >= x).all()
    snow = corrupt(x, "snow", 5, generator=seeded())
    assert (snow >= 0.8 * x - 1e-9).all() and snow.mean() > x.mean() + 0.1
    white = torch.ones(5, 3, 32, 32)
    assert corrupt(white, "spatter", 4, generator=seeded()).mean() < 1
    black = torch.zeros(5, 3, 32, 32)
    water = corrupt(black, "spatter", 3, generator=seeded())
    assert (water[:, 2] >= water[:, 0]).all() and water.max() > 0.3


def test_nothing_is_corrupted_to_nothing():
    for kind in KINDS:
        assert corrupt(torch.zeros(0, 3, 32, 32), kind, 5, generator=seeded()).shape[0] == 0


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    for kind in KINDS:
        corrupt(pictures(1), kind, 5, generator=seeded())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("argument", "arguments"),
    [
        ("kind", (torch.rand(1, 1, 8, 8), "rain", 1)),
        ("severity", (torch.rand(1, 1, 8, 8), "fog", 0)),
        ("severity", (torch.rand(1, 1, 8, 8), "fog", 6)),
        ("severity", (torch.rand(1, 1, 8, 8), "fog", 2.5)),
        ("severity", (torch.rand(1, 1, 8, 8), "fog", 2.0)),
        ("images", (torch.rand(1, 2, 8, 8), "fog", 1)),
        ("images", (torch.rand(1, 8, 8), "fog", 1)),
        ("images", (torch.rand(1, 1, 7, 8), "fog", 1)),
        ("images", (torch.zeros(1, 1, 8, 8, dtype=torch.uint8), "fog", 1)),
        ("images", (torch.full((1, 1, 8, 8), 1.5), "fog", 1)),
        ("images", (torch.full((1, 1, 8, 8), -0.1), "fog", 1)),
        ("images", (torch.full((1, 1, 8, 8), math.nan), "fog", 1)),
    ],
)
def test_bad_input_names_the_argument(argument, arguments):
    with pytest.raises(ValueError, match=rf"^{argument}: .* expected"):
        corrupt(*arguments, generator=seeded())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", KINDS)
def test_the_device_is_that_of_the_images(kind):
    x = pictures(2, dtype=torch.float32)
    y = corrupt(x.cuda(), kind, 5, generator=seeded())
    assert y.is_cuda
    torch.testing.assert_close(y.cpu(), corrupt(x, kind, 5, generator=seeded()), rtol=0, atol=0.05)
