"""`emu evaluate tokenizer`: figures that can be checked by hand, buckets, what is skipped, errors."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from emu.cli.evaluate import folder_names, main, report_folder
from emu.evaluation import perceptual
from emu.evaluation.reconstruction import TokenizerOptions, batches, evaluate, fit
from emu_tokenizers import VisionTokenizer, VisionTokenizerConfig
from emu_tokenizers.pixels.comparison import side_by_side
from emu_tokenizers.pixels.images import open_image
from emu_tokenizers.pixels.metrics import psnr
from emu_tokenizers.pixels.sources import picture_sources
from emu_tokenizers.pixels.transforms import to_pixels
from emu_tokenizers.training.pixel_samples import Samples

TINY = {"base_channels": 8, "channel_multiplier": (1, 1), "norm_groups": 4, "codebook_size": 64}
SIZES = [(24, 16)] * 3 + [(16, 24)] * 2 + [(27, 18)]


class Average(torch.nn.Module):
    """Features (B, 3) of pictures or clips: the mean colour."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.flatten(2).mean(-1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("evaluate")
    torch.manual_seed(0)
    VisionTokenizer(VisionTokenizerConfig.preset("small", **TINY)).save_pretrained(root / "model")
    random = np.random.default_rng(0)
    (root / "photos").mkdir()
    for index, (width, height) in enumerate(SIZES):
        array = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(array).save(root / "photos" / f"{index}.png")
    for index in range(2):
        (root / "clips" / f"{index}").mkdir(parents=True)
        for frame in range(5):
            array = random.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(array).save(root / "clips" / f"{index}" / f"{frame}.png")
    torch.jit.script(Average()).save(str(root / "average.pt"))
    return root


def test_figures_of_the_command_are_those_of_each_picture_alone(folder, tmp_path, capsys):
    assert (
        main(["tokenizer", str(folder / "model"), "--images", str(folder / "photos"), "--output", str(tmp_path)]) == 0
    )
    table = json.loads((tmp_path / "tokenizer.json").read_text())
    tokenizer, values, codes = VisionTokenizer.from_pretrained(folder / "model"), [], []
    for file in sorted((folder / "photos").iterdir()):
        pixels = to_pixels(fit(open_image(file), 4, None))[None]
        codes.append(tokenizer.encode(pixels))
        values.append(psnr(tokenizer.decode(codes[-1]), pixels).item())
    assert table["images"]["images"] == len(SIZES)
    assert table["images"]["psnr"] == pytest.approx(sum(values) / len(values), abs=1e-3)
    assert table["images"]["bits_per_pixel"] == pytest.approx(math.log2(64) / 16)
    used = torch.cat([some.flatten() for some in codes]).unique().numel()
    assert table["codebook"]["use"] == pytest.approx(used / 64) and table["codebook"]["dead"] == 64 - used
    assert table["images"]["encode_images_per_second"] > 0 and -1 <= table["images"]["ssim"] <= 1
    assert Image.open(tmp_path / "tokenizer.png").width == 1000
    printed = capsys.readouterr().out
    assert "perplexity" in printed and "skipped images/rfid" in printed


def test_clips_count_the_bits_of_all_their_frames(folder, tmp_path):
    words = ["tokenizer", str(folder / "model"), "--videos", str(folder / "clips"), "--frames", "5"]
    main([*words, "--output", str(tmp_path), "--fvd-network", str(folder / "average.pt")])
    table = json.loads((tmp_path / "tokenizer.json").read_text())
    assert table["videos"]["videos"] == 2 and "images" not in table
    assert table["videos"]["bits_per_pixel"] == pytest.approx(6 * 2 / (5 * 16))  # five frames are two latent frames
    assert table["videos"]["rfvd"] >= 0
    assert set(table["skipped"]) == {"videos/lpips"}


def test_a_frechet_distance_is_that_of_the_features(folder):
    pixels = [torch.rand(8, 3, 8, 8) * 2 - 1 for _ in range(2)]
    metric = perceptual.Frechet(torch.jit.load(str(folder / "average.pt")))
    metric.add(*pixels)
    (left, right) = (Average()(x).double() for x in pixels)
    roots = torch.linalg.eigvals(left.T.cov() @ right.T.cov()).sqrt().real.sum()
    expected = (left.mean(0) - right.mean(0)).square().sum() + left.T.cov().trace() + right.T.cov().trace() - 2 * roots
    assert metric.compute() == pytest.approx(float(expected), rel=1e-4)


def test_unequal_sizes_fall_into_buckets_and_nothing_is_padded(folder):
    sources = picture_sources(folder / "photos")
    shapes = [tuple(x.shape) for x in batches(sources, Samples(9, 0.1), 4, TokenizerOptions(batch_size=2), clip=False)]
    assert sorted(shapes) == [(2, 3, 16, 24), (2, 3, 16, 24), (2, 3, 24, 16)]  # 27x18 is cut to 24x16
    square = [tuple(x.shape) for x in batches(sources, Samples(9, 0.1), 4, TokenizerOptions(size=8), clip=False)]
    assert square == [(6, 3, 8, 8)]


def test_what_needs_weights_is_skipped_by_name_and_the_rest_is_measured(folder, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(folder / "nowhere"))
    tokenizer = VisionTokenizer.from_pretrained(folder / "model")
    found, _ = evaluate(tokenizer, picture_sources(folder / "photos"), [], TokenizerOptions())
    assert set(found["skipped"]) == {"images/lpips", "images/rfid"}
    assert "VGG16" in found["skipped"]["images/lpips"] and "Inception" in found["skipped"]["images/rfid"]
    assert found["images"]["psnr"] > 0
    with pytest.raises(OSError, match="--download fetches it"):
        perceptual._require_file("https://example.org/weights.pth", download=False)


def test_too_few_samples_or_too_small_pictures_skip_a_figure(folder, tmp_path):
    Image.new("RGB", (8, 8), (9, 9, 9)).save(tmp_path / "one.png")
    tokenizer = VisionTokenizer.from_pretrained(folder / "model")
    options = TokenizerOptions(fid_network=str(folder / "average.pt"))
    found, _ = evaluate(tokenizer, picture_sources(tmp_path), [], options)
    assert "at least 2 samples" in found["skipped"]["images/rfid"]
    assert "smaller than the window" in found["skipped"]["images/ssim"]
    assert "ssim" not in found["images"]


def test_bad_files_are_left_out_and_counted(folder, tmp_path):
    for index in range(3):
        Image.new("RGB", (16, 16), (index, 90, 90)).save(tmp_path / f"{index}.png")
    (tmp_path / "text.png").write_text("no picture")
    Image.new("RGB", (2, 16)).save(tmp_path / "thin.png")
    words = ["tokenizer", str(folder / "model"), "--images", str(tmp_path), "--output", str(tmp_path / "out")]
    assert main(words) == 1  # told, and not stopped: of five files two bad ones say nothing
    table = json.loads((tmp_path / "out" / "tokenizer.json").read_text())
    assert table["bad_files"] == {"not a picture": 1, "too small": 1} and table["images"]["images"] == 3


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ([], ValueError, "--images, --videos or both"),
        (["--images", "nowhere"], FileNotFoundError, "nowhere"),
        (["--images", "PHOTOS", "--size", "10"], ValueError, "expected a multiple of the tokenizer's factor 4"),
        (["--images", "PHOTOS", "--batch-size", "0"], ValueError, "batch_size is 0; expected 1 or more"),
        (["--images", "PHOTOS", "--fid-network", "nowhere.pt"], FileNotFoundError, "no network"),
        (["--images", "PHOTOS", "--fid-network", "TEXT"], ValueError, "not a TorchScript network"),
    ],
)
def test_what_cannot_work_is_named(folder, tmp_path, words, error, message):
    (tmp_path / "text.pt").write_text("no network")
    words = [{"PHOTOS": str(folder / "photos"), "TEXT": str(tmp_path / "text.pt")}.get(word, word) for word in words]
    with pytest.raises(error, match=message):
        main(["tokenizer", str(folder / "model"), *words, "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_no_tokenizer_is_named(folder):
    with pytest.raises((FileNotFoundError, ValueError), match="photos"):
        main(["tokenizer", str(folder / "photos"), "--images", str(folder / "photos")])


def test_the_earlier_form_of_the_command_is_the_suite(folder, tmp_path, capsys):
    words = ["--images", str(folder / "photos"), "--batch-size", "2"]
    assert main([str(folder / "model"), "--suite", "tokenizer", *words, "--output", str(tmp_path / "new")]) == 0
    with pytest.warns(DeprecationWarning, match="emu evaluate PATH --suite tokenizer"):
        assert main(["tokenizer", str(folder / "model"), *words, "--output", str(tmp_path / "old")]) == 0
    new, old = (json.loads((tmp_path / name / "tokenizer.json").read_text()) for name in ("new", "old"))
    for table in (new, old):
        table["images"] = {name: value for name, value in table["images"].items() if "second" not in name}
    assert new == old and new["tokenizer"] == str(folder / "model")
    assert {file.name for file in (tmp_path / "new").glob("[!.]*")} == {"tokenizer.json", "tokenizer.png"}
    *_, last = capsys.readouterr().out.splitlines()
    assert last == f"written to {tmp_path / 'old' / 'tokenizer.json'} and {tmp_path / 'old' / 'tokenizer.png'}"


def test_a_model_in_a_folder_named_tokenizer_is_a_model_wherever_a_suite_is_named(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tokenizer").symlink_to(folder / "model")
    words = ["--images", str(folder / "photos"), "--output", str(tmp_path / "out")]
    assert main(["tokenizer", "--suite", "tokenizer", *words]) == 0
    assert json.loads((tmp_path / "out" / "tokenizer.json").read_text())["tokenizer"] == "tokenizer"
    with pytest.raises((FileNotFoundError, ValueError), match="tokenizer"):
        main(["tokenizer", "--suite=calibration"])


def test_unknown_suites_and_options_of_others_are_refused(capsys):
    with pytest.raises(ValueError, match="suite 'speed' is not registered; expected one of .*'calibration'"):
        main(["model", "--suite", "speed"])
    with pytest.raises(ValueError, match="class path 'no_such_module.Suite'"):
        main(["model", "--suite", "no_such_module.Suite"])
    with pytest.raises(SystemExit):
        main(["model", "--suite", "video", "--images", "photographs"])
    with pytest.raises(SystemExit):
        main(["model", "--sui", "video"])
    assert "in full" in capsys.readouterr().err


def test_pictures_stand_side_by_side():
    left = torch.full((3, 10, 20), -1.0)
    picture = side_by_side([(left, -left, "1 dB")], width=1000)
    assert picture.getpixel((10, 30)) == (0, 0, 0) and picture.getpixel((520, 30)) == (255, 255, 255)
    assert picture.getpixel((6 + 79, 30)) == (0, 0, 0) and picture.getpixel((6 + 81, 30)) == (255, 255, 255)
    with pytest.raises(ValueError, match="nothing to compare"):
        side_by_side([])


def test_figures_never_go_into_a_folder_that_is_a_model_s(tmp_path, monkeypatch):
    model = tmp_path / "run" / "model"
    (model / "vision_tokenizer").mkdir(parents=True)
    (model / "multimodal_tokenizer.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert report_folder(str(model / "vision_tokenizer")) == report_folder(str(model)) == tmp_path / "run"
    assert report_folder("digits") == report_folder("owner/name") == tmp_path


def test_figures_of_models_that_would_be_called_alike_stand_apart():
    names = folder_names(["a/b", "a-b", "../a-b", ".", "runs/shapes/model"])
    assert list(names.values()) == ["a-b", "a-b-2", "a-b-3", "model", "runs-shapes-model"]
