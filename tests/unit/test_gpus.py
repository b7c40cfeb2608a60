"""GPUs as NVML tells them; what it tells is given here."""

from collections.abc import Sequence
from types import SimpleNamespace

import pytest

from farm.errors import InvalidRequest
from farm.machine import gpus
from farm.machine.load import GpuLoad, gpu_load


class NVMLError(Exception):
    pass


class Nvml(SimpleNamespace):
    """As much of pynvml as discovering takes: GPUs by index, of those in MIG mode with instances."""

    NVMLError = NVMLError
    NVML_DEVICE_MIG_ENABLE = 1

    def __init__(self, *devices: dict) -> None:
        super().__init__(devices=devices)

    def nvmlInit(self):  # noqa: N802
        pass

    nvmlShutdown = nvmlInit  # noqa: N815

    def __getattr__(self, name):
        answers = {
            "nvmlDeviceGetCount": lambda: len(self.devices),
            "nvmlDeviceGetHandleByIndex": lambda index: self.devices[index],
            "nvmlDeviceGetCudaComputeCapability": lambda device: device["capability"],
            "nvmlDeviceGetUUID": lambda device: device["uuid"],
            "nvmlDeviceGetName": lambda device: device["name"],
            "nvmlDeviceGetMemoryInfo": lambda device: SimpleNamespace(
                total=device["memory"], used=device.get("used", 0)
            ),
            "nvmlDeviceGetHandleByUUID": self.by_uuid,
            "nvmlDeviceGetUtilizationRates": lambda device: SimpleNamespace(
                gpu=told(device, "gpu")
            ),
            "nvmlDeviceGetPowerUsage": lambda device: told(device, "power"),
            "nvmlDeviceGetTemperature": lambda device, _sensor: told(device, "temperature"),
            "NVML_TEMPERATURE_GPU": 0,
            "nvmlDeviceGetMigMode": self.mode,
            "nvmlDeviceGetMaxMigDeviceCount": lambda _device: 7,
            "nvmlDeviceGetMigDeviceHandleByIndex": self.instance,
        }
        return answers[name]

    def mode(self, device):
        if "slices" not in device:
            raise NVMLError("not supported")
        return 1, 1

    def by_uuid(self, uuid):
        for one in self.devices:
            if one["uuid"] == uuid:
                return one
        raise NVMLError("not found")

    def instance(self, device, index):
        if index >= len(device["slices"]):
            raise NVMLError("not found")
        return device["slices"][index]


def told(device: dict, what: str):
    if what not in device:
        raise NVMLError("not supported")
    return device[what]


def device(uuid: str, name: str, **more: object) -> dict:
    return {"uuid": uuid, "name": name, "capability": (9, 0), "memory": 141 << 30} | more


@pytest.fixture
def discovered(monkeypatch):
    def discover(*devices: dict) -> Sequence[gpus.Gpu]:
        monkeypatch.setitem(__import__("sys").modules, "pynvml", Nvml(*devices))
        return gpus.discover()

    return discover


def test_a_gpu_answers_to_its_capability_and_its_product(discovered):
    [gpu] = discovered(device("GPU-1", "NVIDIA H200"))
    assert gpu.tags == ("sm_90", "h200")
    assert gpu.tag == "h200"


def test_a_gpu_in_mig_mode_is_as_many_as_it_has_instances(discovered):
    name = "NVIDIA H200 MIG 1g.18gb"
    slices = [device(f"MIG-{n}", name, memory=18 << 30) for n in range(2)]
    found = discovered(device("GPU-1", "NVIDIA H200", slices=slices), device("GPU-2", "NVIDIA L4"))
    assert [gpu.uuid for gpu in found] == ["MIG-0", "MIG-1", "GPU-2"]
    # What is tuned on a slice isn't what the whole GPU needs.
    assert found[0].tags == ("h200-1g.18gb",)
    assert found[0].tag == "h200-1g.18gb"
    assert found[0].compute_capability == "sm_90"
    assert found[0].memory_bytes == 18 << 30


def test_a_slice_of_a_gpu_of_no_known_product_answers_to_a_tag_of_its_own_too(discovered):
    slices = [device("MIG-0", "NVIDIA Unheard-Of MIG 1g.18gb")]
    [found] = discovered(device("GPU-1", "NVIDIA Unheard-Of", slices=slices))
    assert found.tags == ("sm_90-1g.18gb",)


def test_a_gpu_in_mig_mode_without_instances_can_do_nothing(discovered):
    assert discovered(device("GPU-1", "NVIDIA H200", slices=[])) == []


@pytest.mark.parametrize(
    ("wanted", "uuids"),
    [
        (None, ["GPU-aa", "GPU-ab"]),
        ("", []),
        ("1", ["GPU-ab"]),
        ("GPU-ab,GPU-aa", ["GPU-ab", "GPU-aa"]),
    ],
)
def test_cuda_visible_devices_leaves_out_gpus(discovered, wanted, uuids):
    found = discovered(device("GPU-aa", "NVIDIA H200"), device("GPU-ab", "NVIDIA H200"))
    assert [gpu.uuid for gpu in gpus.visible(found, wanted)] == uuids


@pytest.mark.parametrize("wanted", ["2", "GPU-a", "GPU-zz"])
def test_a_gpu_that_is_not_there_is_an_error_that_names_those_that_are(discovered, wanted):
    found = discovered(device("GPU-aa", "NVIDIA H200"), device("GPU-ab", "NVIDIA H200"))
    with pytest.raises(InvalidRequest) as caught:
        gpus.visible(found, wanted)
    assert "GPU-ab (NVIDIA H200)" in caught.value.hint


def test_a_gpus_load_is_told_in_base_units(monkeypatch):
    busy = {"used": 3 << 30, "gpu": 45, "power": 312_500, "temperature": 61}
    nvml = Nvml(device("GPU-1", "NVIDIA H200", **busy))
    monkeypatch.setitem(__import__("sys").modules, "pynvml", nvml)
    assert gpu_load("GPU-1") == GpuLoad(
        utilization=0.45,
        memory_used_bytes=3 << 30,
        memory_bytes=141 << 30,
        power_w=312.5,
        temperature_c=61,
    )


def test_what_a_slice_does_not_report_is_left_out(monkeypatch):
    nvml = Nvml(device("MIG-0", "NVIDIA H200 MIG 1g.18gb", used=1))
    monkeypatch.setitem(__import__("sys").modules, "pynvml", nvml)
    load = gpu_load("MIG-0")
    assert dict(load.known()) == {"memory_used_bytes": 1, "memory_bytes": 141 << 30}


def test_a_gpu_that_is_gone_has_no_load(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pynvml", Nvml())
    assert gpu_load("GPU-1") is None


def test_what_a_worker_stored_as_its_load_is_numbers_or_nothing():
    stored = {"utilization": "a lot", "power_w": float("nan"), "temperature_c": 40, "model": 1}
    assert GpuLoad.read(stored) == GpuLoad(temperature_c=40.0)
