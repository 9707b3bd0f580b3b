"""GPUs are told apart by name, theirs and ours."""

import pytest
import torch

from recipes.edge.estimates.devices import DEVICES, Device, find_device, this_device


def test_every_device_is_found_by_its_name() -> None:
    assert [find_device(device.name) for device in DEVICES] == list(DEVICES)
    assert len({device.name for device in DEVICES}) == len(DEVICES)


def test_names_that_torch_reports_tell_devices_apart() -> None:
    reported = [name for device in DEVICES for name in device.reported]
    assert len(set(reported)) == len(reported)


@pytest.mark.parametrize("device", DEVICES, ids=lambda device: str(device.name))
def test_a_name_says_the_memory(device: Device) -> None:
    assert device.name.endswith(f"-{device.memory_bytes // 10**9}gb")
    assert device.memory_bytes % 10**9 == 0


def test_figures_are_dense() -> None:
    """Data sheets print the sparse figures, twice as high."""
    assert find_device("h100-80gb").bf16_flops == pytest.approx(1979e12 / 2, rel=1e-3)
    assert find_device("h100-pcie-80gb").bf16_flops == pytest.approx(
        1513e12 / 2, rel=1e-3
    )
    assert find_device("l40s-48gb").bf16_flops == pytest.approx(733e12 / 2, rel=0.02)
    assert find_device("b200-180gb").bf16_flops == 36e15 / 8 / 2


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ValueError) as error:
        find_device("h100")
    assert str(error.value) == (
        "device is 'h100'; the GPU that a dry run is for must be one of h100-80gb, "
        "h100-pcie-80gb, h200-141gb, a100-80gb, a100-40gb, l40s-48gb, b200-180gb"
    )


def test_a_cpu_is_no_listed_device() -> None:
    assert this_device(torch.device("cpu")) is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_is_what_torch_says() -> None:
    found = this_device(torch.device("cuda"))
    reported = torch.cuda.get_device_name()
    assert (found is None) == all(reported not in each.reported for each in DEVICES)
    assert found is None or reported in found.reported
