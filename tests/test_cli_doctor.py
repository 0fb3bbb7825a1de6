"""`emu doctor`: a short report in any environment, a broken one too, and a line for everything that would not work."""

from __future__ import annotations

import sys
from importlib import metadata
from types import SimpleNamespace

import pytest
import torch
from packaging.requirements import Requirement

from emu.cli import doctor
from emu.cli.main import main

TITLES = ["versions", "machine", "devices", "kernels", "extras", "problems"]


@pytest.fixture
def run(capsys):
    """Runs the command; its exit code, and its sections as title -> lines."""

    def examine():
        code = main(["doctor"])
        sections: dict[str, list[str]] = {}
        for line in capsys.readouterr().out.splitlines():
            if line.startswith("  "):
                list(sections.values())[-1].append(line.strip())
            else:
                sections[line] = []
        return code, sections

    return examine


def line_of(lines, name):
    (found,) = [line for line in lines if line.split()[0] == name]
    return found


@pytest.fixture
def versions(monkeypatch):
    """Versions that are told instead of the installed ones; None for a package that is missing."""
    told: dict[str, str | None] = {}
    usual = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: told[name] if name in told else usual(name))
    return told


def test_the_report_is_short_and_its_exit_code_tells_of_problems(run):
    code, sections = run()
    assert list(sections) == TITLES and sum(map(len, sections.values())) < 60
    assert code == (sections["problems"] != ["none"])
    assert torch.__version__ in line_of(sections["versions"], "torch")
    assert "GiB free" in line_of(sections["machine"], "disk") and "OMP_NUM_THREADS" in line_of(
        sections["machine"], "threads"
    )
    assert line_of(sections["devices"], "cpu") and sections["kernels"]


def test_it_works_where_torch_cannot_be_imported(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    code, sections = run()
    assert code == 1 and list(sections) == TITLES
    assert [line for line in sections["problems"] if line.startswith("torch cannot be imported (")]
    assert sections["devices"] == sections["kernels"] == ["not known  torch cannot be imported"]


def test_what_an_extra_lacks_comes_with_the_command_that_installs_it(run, versions):
    versions |= {"peft": None, "av": None, "torchao": "0.18.0", "accelerate": "1.8.0"}
    _, sections = run()
    assert line_of(sections["extras"], "lora").endswith("  missing peft: pip install 'peft>=0.17'")
    assert "missing av: pip install 'av>=14'" in line_of(sections["extras"], "video")
    assert line_of(sections["extras"], "quantized").endswith("installed")
    assert not [line for line in sections["problems"] if "peft" in line or "av is" in line]


@pytest.mark.parametrize(
    ("name", "version", "told"),
    [
        ("transformers", "4.57.0", "transformers is 4.57.0, emu needs >=5.10.4: pip install 'transformers>=5.10.4'"),
        ("safetensors", None, "safetensors is missing, emu needs >=0.6: pip install 'safetensors>=0.6'"),
        ("accelerate", "1.0.0", "accelerate is 1.0.0, emu needs >=1.8: pip install 'accelerate>=1.8'"),
    ],
)
def test_versions_outside_the_ranges_are_problems(name, version, told, run, versions):
    versions[name] = version
    code, sections = run()
    assert code == 1 and told in sections["problems"]


def test_what_dependencies_need_of_each_other_is_compared_too(monkeypatch, versions):
    usual = metadata.requires
    needs = ["triton==3.7.1; platform_system == 'Linux' or platform_system != 'Linux'", "numpy; extra == 'more'"]
    monkeypatch.setattr(metadata, "requires", lambda name: needs if name == "torch" else usual(name))
    versions["triton"] = "3.9.0"
    told = doctor.check_versions([Requirement("torch>=2.11")], {})
    assert told == ["triton is 3.9.0, torch needs ==3.7.1: pip install 'triton==3.7.1'"]
    versions["triton"] = "3.7.1"
    assert doctor.check_versions([Requirement("torch>=2.11")], {}) == []


def test_gpus_are_named_with_what_runs_on_each(run, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Imagined GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (3 * 1024**3, 8 * 1024**3))
    paths = {"attention": ("triton", "kernels for sm_90"), "nearest_code": ("torch", "it cannot be compiled")}
    monkeypatch.setattr("emu_kernels.choices", lambda device: paths, raising=False)
    _, sections = run()
    assert "cuda:0  Imagined GPU, compute capability 9.0, 3.0 GiB free of 8.0" in sections["devices"]
    assert "cuda:0  triton for attention: kernels for sm_90" in sections["kernels"]
    assert "cuda:0  torch for nearest_code: it cannot be compiled" in sections["kernels"]


def test_a_gpu_that_torch_does_not_see_is_a_problem(run, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for listed, expected in (("GPU 0: Imagined", True), ("No devices were found", False)):
        answer = SimpleNamespace(returncode=0, stdout=listed)
        monkeypatch.setattr(doctor.subprocess, "run", lambda *args, answer=answer, **options: answer)
        code, sections = run()
        assert any("the NVIDIA driver sees a GPU" in line for line in sections["problems"]) == expected


def test_it_works_where_the_package_was_not_installed(run, monkeypatch):
    monkeypatch.setattr(doctor, "DISTRIBUTION", "no-such-distribution")
    code, sections = run()
    assert code == 1 and "is not installed, so that versions cannot be compared" in sections["problems"][0]


def test_an_extension_that_cannot_be_loaded_is_a_problem_and_no_crash(run, monkeypatch):
    def fail():
        raise ValueError("the extension 'boxes' (my_boxes) of my-boxes cannot be loaded (ImportError: no); repair it")

    monkeypatch.setattr(doctor, "load_extensions", fail)
    code, sections = run()
    assert code == 1 and line_of(sections["extras"], "extensions").endswith("not loaded")
    assert any(line.startswith("the extension 'boxes'") for line in sections["problems"])
